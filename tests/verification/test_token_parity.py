"""Tests of token-id parity: a difference is reported with its position, and known ones are not counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import DataError
from aegis.llama_cpp import Runtime, convert, rendering
from aegis.model.base import load_tokenizer
from aegis.verification.token_parity import TokenIds, chat_ids, compare_tokens
from tests.conftest import MakeRandom

DECOMPOSED = unicodedata.normalize("NFD", "がぎぐげご")


@pytest.fixture(scope="module")
def composing(
    make_random: MakeRandom, knowing_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Runtime]]:
    """Return a tokenizer that composes text before it splits it, as Qwen's does, on both sides."""
    folder, gguf = make_random("qwen2", pre="qwen2"), tmp_path_factory.mktemp("vocab") / "vocab.gguf"
    convert(folder, gguf, model_name="tiny", tree=knowing_tree, vocab_only=True)
    with Runtime(gguf, vocab_only=True) as runtime:
        yield load_tokenizer(folder), runtime


def test_text_that_only_one_side_composes_is_reported_and_not_counted(composing: tuple[Any, Runtime]) -> None:
    tokenizer, runtime = composing
    assert tokenizer(DECOMPOSED).input_ids != runtime.tokenize(DECOMPOSED, add_bos=True)
    parity = compare_tokens(TokenIds.of(tokenizer, [DECOMPOSED]), runtime)
    assert parity.wrong == ()
    (remark,) = parity.remarks
    assert "NFC" in remark.english


def test_texts_with_other_ids_are_counted(composing: tuple[Any, Runtime], quick_base: Path) -> None:
    """The control: another tokenizer's ids, with the token they part at; composing explains none of that."""
    _, runtime = composing
    parity = compare_tokens(TokenIds.of(load_tokenizer(quick_base), [DECOMPOSED]), runtime)
    assert len(parity.wrong) > parity.compared / 2
    assert any("from token 0 on" in line.shown and "in llama.cpp" in line.english for line in parity.wrong)


def test_a_template_that_does_not_end_is_stopped(
    composing: tuple[Any, Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training."""
    tokenizer, _ = composing
    chat_ids(tokenizer, [{"role": "user", "content": "x"}])
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    for template, key in ((endless, "hangs"), (tokenizer.chat_template + "{{ no_such_thing.x }}", "raises")):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        with pytest.raises(DataError) as failed:
            chat_ids(tokenizer, [{"role": "user", "content": "x"}])
        assert failed.value.key == f"rendering.{key}"
