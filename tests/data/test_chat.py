"""Tests that the model is trained on the assistant's words and the token that ends its turn, and on nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers

from aegis.data.chat import Encoder, token_ids
from aegis.data.example import Example
from aegis.data.records import Chat, Plain, Record
from aegis.data.rejects import Rejects
from aegis.data.row_encoder import RowEncoder
from aegis.data.tokenizer_parts import TokenizerParts
from aegis.errors import DataError, UnsupportedModelError
from aegis.verification.token_parity import chat_ids
from aegis.verification.token_sequences import plain_sequences
from tests.data.conftest import CHATML, GEMMA, LLAMA3

MakeTokenizer = Callable[..., Any]
EVERYTHING = (
    "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ tools is none }}{{ documents is none }}"
    "{{ raise_exception is callable }}" + CHATML.replace("{% endfor %}", "{{ m | tojson }}{% endfor %}")
)


@pytest.fixture(scope="session", params=["trained here", "Phi-3.5"])
def phi_like(request: pytest.FixtureRequest, phi: Any, real: Callable[[str], Any]) -> Any:
    return phi if request.param == "trained here" else real(request.param)


def chat(*contents: str, system: str | None = None) -> Chat:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    head = [] if system is None else [{"role": "system", "content": system}]
    return Chat([*head, *messages], "x:1")  # type: ignore[list-item]


def encode(tokenizer: Any, record: Record, **settings: Any) -> Example:
    rejects = Rejects("x")
    examples = Encoder(tokenizer, **settings).encode([record], rejects)
    rejects.check()
    return examples[0]


def refusal(tokenizer: Any, record: Record, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        encode(tokenizer, record, **settings)
    return str(caught.value)


def trained_runs(tokenizer: Any, example: Example) -> list[str]:
    """Return the trained tokens, decoded run by run."""
    runs = groupby(zip(example.ids.tolist(), example.trained.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for trained, run in runs if trained]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (chat("こんにちは", "お元気ですか。"), ["お元気ですか。<|end|>"]),
        (chat("Hi", "Hello", "二つ目", "はい。"), ["Hello<|end|>", "はい。<|end|>"]),
        (chat("Hi", "Hello", system="丁寧に。"), ["Hello<|end|>"]),
        (chat("same", "same", "same", "same"), ["same<|end|>", "same<|end|>"]),
        (chat("Hi", "一行目\n\n二行目 😀"), ["一行目\n\n二行目 😀<|end|>"]),
        (chat("Hi", "Hello \n"), ["Hello \n<|end|>"]),
        # the tag swallows white space behind it, in llama.cpp too: it is no part of what the model writes
        (chat("Hi", " \n Hello"), ["Hello<|end|>"]),
    ],
)
def test_phi_learns_each_answer_and_its_end(phi_like: Any, record: Chat, expected: list[str]) -> None:
    example = encode(phi_like, record)
    assert trained_runs(phi_like, example) == expected
    assert phi_like.convert_ids_to_tokens(int(example.ids[-1])) == "<|endoftext|>"
    assert not example.trained[-1]


@pytest.mark.parametrize(
    ("template", "specials", "end"),
    [
        (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
        (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    ],
    ids=["chatml", "llama3", "gemma"],
)
def test_other_templates_give_the_right_training_mask(
    byte_level: MakeTokenizer, template: str, specials: list[str], end: str
) -> None:
    tokenizer = byte_level(template, specials, adds_bos=template is not CHATML)
    example = encode(tokenizer, chat("こんにちは", "お元気ですか。", "Hi", "Hello there"))
    assert trained_runs(tokenizer, example) == [f"お元気ですか。{end}", f"Hello there{end}"]


def test_the_prompt_at_inference_is_how_the_training_text_begins(phi_like: Any) -> None:
    record = chat("こんにちは", "Hello", "二つ目", "はい。")
    example = encode(phi_like, record)
    starts = np.flatnonzero(np.diff(example.trained.astype(int), prepend=0) == 1)
    for start, count in zip(starts, (1, 3), strict=True):
        prompt = phi_like.apply_chat_template(record.messages[:count], add_generation_prompt=True, return_dict=False)
        assert example.ids[:start].tolist() == prompt


def test_ids_are_those_of_the_tokenizer(phi_like: Any) -> None:
    record = chat("こんにちは  X", " Hello\n", "😀", "二行\n目", system="丁寧に。")
    expected = phi_like.apply_chat_template(record.messages, return_dict=False)
    assert encode(phi_like, record).ids.tolist() == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA3, EVERYTHING], ids=["chatml", "llama3", "everything"])
def test_a_template_gets_the_variables_of_transformers(byte_level: MakeTokenizer, template: str) -> None:
    specials = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(template, specials)
    record = chat("こんにちは  X", " Hello\n", "😀", "二行\n目", system="丁寧に。")
    assert encode(tokenizer, record).ids.tolist() == tokenizer.apply_chat_template(record.messages, return_dict=False)


def test_an_end_token_that_is_added_but_not_special_is_trained_on(byte_level: MakeTokenizer) -> None:
    tokenizer = byte_level(CHATML, ["<|im_start|>"])
    tokenizer.add_tokens(["<|im_end|>"])
    record = chat("Hi", "Hello", "Hi", "there")
    assert trained_runs(tokenizer, encode(tokenizer, record)) == ["Hello<|im_end|>", "there<|im_end|>"]


@pytest.mark.parametrize(
    ("adds_bos", "template", "count"),
    [
        (True, CHATML, 1),
        (False, CHATML, 0),
        (True, "{{ bos_token }}" + CHATML, 1),
        (False, "{{ bos_token }}" + CHATML, 1),
    ],
)
def test_one_begin_of_text_when_inference_has_one(
    byte_level: MakeTokenizer, adds_bos: bool, template: str, count: int
) -> None:
    tokenizer = byte_level(template, ["<|im_start|>", "<|im_end|>"], adds_bos=adds_bos)
    example = encode(tokenizer, chat("Hi", "Hello"))
    assert example.ids.tolist().count(tokenizer.bos_token_id) == count
    assert not count or (example.ids[0] == tokenizer.bos_token_id and not example.trained[0])
    assert trained_runs(tokenizer, example) == ["Hello<|im_end|>"]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_plain_text_is_trained_on_completely_with_its_end(byte_level: MakeTokenizer, adds_bos: bool) -> None:
    tokenizer = byte_level(None, adds_bos=adds_bos)
    example = encode(tokenizer, Plain("今日は Hello\n", "x:1"))
    assert tokenizer.decode(example.ids) == "<bos>" * adds_bos + "今日は Hello\n<eos>"
    assert example.trained.tolist() == [False] * adds_bos + [True] * (len(example.ids) - adds_bos)
    assert example.is_document


def test_a_text_has_the_same_tokens_alone_and_beside_a_chat(phi_like: Any, byte_level: MakeTokenizer) -> None:
    """Alone, its tokens' places are not asked for."""
    text = Plain("今日は  Hello\n\n😀 e\u0301 ﬁ <|nonsense|>\u3000\n", "x:1")
    for tokenizer in (phi_like, byte_level(CHATML, ["<|im_start|>", "<|im_end|>"], adds_bos=True)):
        encoder, rejects = Encoder(tokenizer), Rejects("x")
        (alone,), (beside, _) = (encoder.encode(rows, rejects) for rows in ([text], [text, chat("Hi", "Hello")]))
        assert (alone.ids.tolist(), alone.trained.tolist()) == (beside.ids.tolist(), beside.trained.tolist())
        assert rejects.count == 0


def test_prompt_and_completion_need_no_template(byte_level: MakeTokenizer) -> None:
    tokenizer = byte_level(None)
    record = Chat(chat("Question: Hi\nAnswer:", " Hello").messages, "x:1", pair=True)
    example = encode(tokenizer, record)
    assert tokenizer.decode(example.ids) == "Question: Hi\nAnswer: Hello<eos>"
    assert trained_runs(tokenizer, example) == [" Hello<eos>"]
    assert not example.is_document


def test_a_chat_without_a_template_is_refused(byte_level: MakeTokenizer) -> None:
    message = refusal(byte_level(None), chat("Hi", "Hello"))
    assert "no chat template" in message
    assert "x:1" in message
    assert "instruct model" in message


@pytest.mark.parametrize("role", [0, 1])
def test_control_tokens_in_a_text_are_refused(phi_like: Any, role: int) -> None:
    texts = ["Hi", "Hello"]
    texts[role] += "<|end|>\n<|user|>\nmore"
    assert "x:1: its text holds '<|end|>', which the tokenizer reads as a control token" in refusal(
        phi_like, chat(*texts)
    )
    assert "holds '<|endoftext|>'" in refusal(phi_like, Plain("a<|endoftext|>b", "x:1"))
    assert encode(phi_like, Plain("a <|nonsense|> b", "x:1")).trained.any()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% for m in messages %}{{ m.__init__.__globals__ }}{% endfor %}", "SecurityError"),
        ("{% for m in messages %}{% set _ = m.update(content='x') %}{% endfor %}", "SecurityError"),
        ("{% set _ = messages.pop() %}", "SecurityError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "Range too big"),
        ("{{ raise_exception('no such role') }}", "refuses it: TemplateError: no such role"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content }}", "leaves out or rewrites the assistant's message"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "rewrites the user's message"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no token that ends the assistant's turn"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "not the beginning of"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(byte_level: MakeTokenizer, template: str, reason: str) -> None:
    message = refusal(byte_level(template, ["<|im_end|>"]), chat("Hi", "Hello"))
    assert reason in message


@pytest.mark.parametrize(
    ("prompt", "trained"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<|channel>thought\n<channel|>", True),
        ("<|im_start|>assistant\nHere are my reasoning steps:\n", True),
        # the controls: no thought, or another head of the turn
        ("<|im_start|>assistant\nHer answer:\n", False),
        ("<|im_start|>thinker\n", False),
        ("Reason:\n", False),
    ],
)
def test_an_answer_without_the_thought_that_its_prompt_opens_is_trained_on_whole(
    byte_level: MakeTokenizer, prompt: str, trained: bool
) -> None:
    template = CHATML.replace("'<|im_start|>assistant\n'", repr(prompt))
    assert template != CHATML
    tokenizer = byte_level(template, ["<|im_start|>", "<|im_end|>"])
    record = chat("Hi", "Here it is.", "And?", "Here too.")
    if not trained:
        assert "is not the beginning of the complete chat" in refusal(tokenizer, record)
        return
    encoder = Encoder(tokenizer)
    (example,) = encoder.encode([record], Rejects("x"))
    assert trained_runs(tokenizer, example) == ["Here it is.<|im_end|>", "Here too.<|im_end|>"]
    assert encoder.unopened == 1


def test_a_template_cannot_reach_python_objects(byte_level: MakeTokenizer) -> None:
    """A plain `{{ ''.__class__ }}` renders as nothing in the sandbox, so the chat is found missing."""
    assert "leaves out" in refusal(byte_level("{{ ''.__class__ }}"), chat("Hi", "Hello"))


def test_a_template_that_does_not_end_is_stopped(byte_level: MakeTokenizer) -> None:
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(DataError) as refused:
        encode(byte_level(loops), chat("Hi", "Hello"), seconds=0.3)
    assert refused.value.key == "rendering.hangs"


def test_a_template_that_computes_inside_one_call_or_takes_all_memory_is_stopped(byte_level: MakeTokenizer) -> None:
    """Neither gives Python's lock back, nor is a row's own refusal."""
    power = "{% set x = 3**(messages|length * 10**8) %}"
    doubling = "{% set box = namespace(x='a') %}{% for i in range(64) %}{% set box.x = box.x + box.x %}{% endfor %}"
    for template in (power, doubling):
        with pytest.raises(DataError) as refused:
            encode(byte_level(template), chat("Hi", "Hello"), seconds=0.5 if template == power else 60)
        assert refused.value.key in ("rendering.hangs", "rendering.too_large")
    tokenizer = byte_level(CHATML, ["<|im_start|>", "<|im_end|>"])
    assert trained_runs(tokenizer, encode(tokenizer, chat("Hi", "Hello"))) == ["Hello<|im_end|>"]


def test_a_normalizer_that_writes_a_megabyte_per_letter_is_stopped(byte_level: MakeTokenizer) -> None:
    tokenizer = byte_level(CHATML, ["<|im_start|>", "<|im_end|>"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("春", "h" * 2**20)
    with pytest.raises(DataError) as refused:
        encode(tokenizer, chat("Hi", "春" * 4000))
    assert refused.value.key in ("rendering.hangs", "rendering.too_large", "rendering.ended")


def test_a_text_that_a_tokenizer_does_not_finish_is_stopped_wherever_it_is_tokenized(byte_level: MakeTokenizer) -> None:
    tokenizer = byte_level(CHATML, ["<|im_start|>", "<|im_end|>"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("春", "h" * 2**20)
    for tokenize in (
        lambda text: token_ids(tokenizer, text),
        lambda text: chat_ids(tokenizer, [{"role": "user", "content": text}]),
        lambda text: list(plain_sequences([text], tokenizer, 512)),
    ):
        with pytest.raises(DataError) as refused:
            tokenize("春" * 4000)
        assert refused.value.key in ("rendering.hangs", "rendering.too_large", "rendering.ended")
    assert token_ids(tokenizer, "Hello") == tokenizer("Hello").input_ids, "the next text is tokenized"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_ids_of_texts_are_those_of_the_tokenizer(phi_like: Any, byte_level: MakeTokenizer, adds_bos: bool) -> None:
    texts = ["", "Hello there", "<|end|> 春は\n\n花"]
    for tokenizer in (phi_like, byte_level(CHATML, ["<|im_start|>"], adds_bos=adds_bos)):
        for special in (True, False):
            expected = [tokenizer(text, add_special_tokens=special).input_ids for text in texts]
            assert Encoder(tokenizer).token_ids(texts, special=special) == expected
        assert Encoder(tokenizer).token_ids([]) == []


def test_one_bad_row_of_a_batch_costs_only_itself(phi: Any) -> None:
    rejects = Rejects("x", skip_bad=1)
    rows = [chat("Hi", "one"), chat("Hi", "<|user|>"), chat("Hi", "two")]
    examples = Encoder(phi).encode(rows, rejects)
    assert [trained_runs(phi, example) for example in examples] == [["one<|end|>"], ["two<|end|>"]]
    assert rejects.count == 1


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no fast version"):
        Encoder(SimpleNamespace(is_fast=False))


def test_a_template_that_drops_the_system_message_is_refused(byte_level: MakeTokenizer) -> None:
    tokenizer = byte_level(GEMMA, ["<start_of_turn>", "<end_of_turn>"])
    assert "System role not supported" in refusal(tokenizer, chat("Hi", "Hello", system="丁寧に"))


def test_a_system_message_is_put_before_the_first_question_if_configured(
    byte_level: MakeTokenizer,
) -> None:
    silent = "{% for m in messages if m.role != 'system' %}{{ m.content }}<end_of_turn>{% endfor %}"
    for template in (GEMMA, silent):
        tokenizer = byte_level(template, ["<start_of_turn>", "<end_of_turn>"])
        record = chat("Hi", "Hello", "Hi", "there", system="丁寧に")
        assert "with --fold-system" in refusal(tokenizer, record)
        example = encode(tokenizer, record, fold_system=True)
        assert "丁寧に\n\nHi<end_of_turn>" in tokenizer.decode(example.ids)
        assert trained_runs(tokenizer, example) == ["Hello<end_of_turn>", "there<end_of_turn>"]
    # where the template has a place, it stays there
    tokenizer = byte_level(CHATML, ["<|im_start|>", "<|im_end|>"])
    plain, folded = encode(tokenizer, record), encode(tokenizer, record, fold_system=True)
    assert plain.ids.tolist() == folded.ids.tolist()


def test_a_token_across_the_border_of_prompt_and_completion_is_trained_on(byte_level: MakeTokenizer) -> None:
    tokenizer = byte_level(None)
    record = Chat(chat("Question: Hi\nAnswer: ", "Hello").messages, "x:1", pair=True)
    assert trained_runs(tokenizer, encode(tokenizer, record)) == [" Hello<eos>"]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "self", "bos_token"])
def test_a_variable_that_every_chat_has_is_refused_by_its_name(phi: Any, name: str) -> None:
    record = replace(chat("Hi", "Hello"), variables={name: "x"})
    message = refusal(phi, record)
    assert f"'chat_template_kwargs' sets {name!r}" in message
    assert "the chat template refuses it" not in message


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def test_a_chat_that_cannot_be_written_is_refused_in_the_readers_words(phi: Any) -> None:
    """Before the process that encodes it, and in it."""
    deep = replace(chat("Hi", "Hello"), tools=[{"type": "function", "x": nested(100_000)}])
    dated = replace(chat("Hi", "Hello"), tools=[{"type": "function", "x": datetime.date(2026, 1, 2)}])
    assert "nested too deep" in refusal(phi, deep)
    assert "JSON does not have" in refusal(phi, dated)
    ((_, reason),) = RowEncoder(TokenizerParts.of(phi)).encode([deep]).rejects
    assert "nested too deep" in reason
