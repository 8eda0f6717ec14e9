"""Fixtures: small trained tokenizers, of Phi-3's kind with the demo's files, and byte-level ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aegis.demo.tokenizer import train_tokenizer, write_tokenizer

TEXTS = [
    "今日は天気がよいので散歩に行きました。川のほとりで友だちに会いました。",
    "こんにちは。お元気ですか。はい、元気です。ありがとうございます。",
    "Hello there, how are you today? I am fine, thank you very much.",
    "The quick brown fox jumps over the lazy dog. What is two plus two? It is four.",
] * 20

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

MakeTokenizer = Callable[..., Any]


@pytest.fixture(scope="session")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer like Phi-3.5's: role tags remove the white space after them, and no <s> is added."""
    folder = tmp_path_factory.mktemp("phi")
    write_tokenizer(train_tokenizer(TEXTS, 400), folder, max_length=512)
    (folder / "config.json").write_text('{"model_type": "phi3"}', encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def byte_level() -> MakeTokenizer:
    """Make a byte-level BPE tokenizer like that of GPT and Llama 3; with `adds_bos`, it adds <bos> itself."""

    def make(template: str | None, specials: Iterable[str] = (), *, adds_bos: bool = False) -> Any:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<bos>", "<eos>", *specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(TEXTS, trainer)
        core.post_processor = processors.ByteLevel(trim_offsets=True)
        if adds_bos:
            bos = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 0)])
            core.post_processor = processors.Sequence([core.post_processor, bos])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>")
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON Lines; a str is written unchanged."""

    def write(*rows: object, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return path

    return write
