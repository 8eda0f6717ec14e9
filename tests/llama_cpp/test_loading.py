"""Tests that a GGUF whose vocabulary ends llama.cpp is refused, and does not end the process that was to load it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime, loading
from aegis.llama_cpp.loading import refuse_fatal
from aegis.stages.verify_file import verify_file
from tests.gguf_edit import GgufEdit

TOKENS = "tokenizer.ggml.tokens"


def with_tokens(whole: Path, path: Path, changed: dict[int, str]) -> Path:
    edit = GgufEdit(whole)
    tokens = list(edit[TOKENS])
    for number, token in changed.items():
        tokens[number] = token
    edit[TOKENS] = tokens
    edit.save(path)
    return path


@pytest.mark.parametrize("fault", ["twice", "a special token twice", "no line feed"])
def test_a_vocabulary_that_ends_llama_cpp_is_refused(quick_gguf: Path, tmp_path: Path, fault: str) -> None:
    """The process that loads it is another, and the next file is loaded."""
    tokens = GgufEdit(quick_gguf)[TOKENS]
    changed = {
        "twice": {300: tokens[301]},
        "a special token twice": {300: tokens[1]},
        "no line feed": {tokens.index("<0x0A>"): "qqq"},
    }[fault]
    path = with_tokens(quick_gguf, tmp_path / "other.gguf", changed)
    for load in (refuse_fatal, lambda path: Runtime(path, vocab_only=True), lambda path: Runtime(path, n_ctx=8)):
        with pytest.raises(IntegrityError) as caught:
            load(path)
        assert caught.value.key == "runtime.fatal"
    assert verify_file(path).failed_stage == "convert"
    with Runtime(with_tokens(quick_gguf, tmp_path / "same.gguf", {}), vocab_only=True) as runtime:
        assert runtime.tokenize("Hello", add_bos=False)


def test_a_file_is_tried_once_until_it_changes(
    quick_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(loading._confined, "ask", lambda fields, **_: asked.append(fields["path"]))
    path = with_tokens(quick_gguf, tmp_path / "model.gguf", {})
    for _ in range(2):
        refuse_fatal(path)
    assert len(asked) == 1
    with_tokens(quick_gguf, path, {300: "a longer token"})
    refuse_fatal(path)
    assert len(asked) == 2
