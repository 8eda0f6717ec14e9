"""Tests of llama.cpp's passes: the same beside other work as after it, and stopped when that work fails."""

from __future__ import annotations

import itertools
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime, convert
from aegis.verification import llama_passes
from aegis.verification.llama_passes import LlamaPasses
from aegis.verification.logits import repeats_one_token

SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [30, 31, 32, 33]]


@pytest.fixture(scope="module")
def gguf(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "f16.gguf"
    convert(quick_base, path, model_name="tiny phi-3")
    return path


def passes(gguf: Path, work: Path, advanced: list[float], *names: str) -> LlamaPasses:
    files = dict.fromkeys(names or ("f16", "Q8_0"), gguf)
    work.mkdir()
    return LlamaPasses(files, SEQUENCES, work, torch.device("cpu"), threads=1, end_token=None, advance=advanced.append)


def test_beside_other_work_the_logits_are_the_same(gguf: Path, tmp_path: Path) -> None:
    """Each file's are llama.cpp's own; the second sequence's are not the first's."""
    found = []
    for at_once in (False, True):
        advanced: list[float] = []
        running = passes(gguf, tmp_path / str(at_once), advanced)
        running.allow("f16", "Q8_0")
        with running.beside() if at_once else nullcontext():
            running.finish()
        assert list(running.recorded) == ["f16", "Q8_0"]
        assert advanced == [8, 3, 4, 8, 3, 4]
        found.append(running.recorded["Q8_0"].logits)
    assert np.array_equal(*found)
    with Runtime(gguf, n_ctx=64, threads=1, logits=True) as runtime:
        assert np.array_equal(found[0][8:11], runtime.logits(SEQUENCES[1]))
        assert not np.array_equal(found[0][:3], runtime.logits(SEQUENCES[1]))


def test_they_run_beside_the_block(gguf: Path, tmp_path: Path) -> None:
    """The block waits until one file is done: after it, that would never be."""
    advanced, first = [], threading.Event()
    running = passes(gguf, tmp_path / "work", advanced)
    running._advance = lambda tokens: (advanced.append(tokens), first.set())  # type: ignore[assignment,func-returns-value]
    with running.beside():
        running.allow("f16", "Q8_0")
        assert first.wait(60)
        running.finish()


def test_a_failure_of_the_block_stops_them(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the sequence that is running; nothing of llama.cpp is at work when the failure goes on."""
    failed, started, closed = threading.Event(), threading.Event(), []

    class Slow(Runtime):
        def logits(self, tokens: Any) -> Any:
            started.set()
            assert failed.wait(60)
            return super().logits(tokens)

        def close(self) -> None:
            super().close()
            closed.append(True)

    monkeypatch.setattr(llama_passes, "Runtime", Slow)
    advanced: list[float] = []
    running = passes(gguf, tmp_path / "work", advanced)
    with pytest.raises(KeyError), running.beside():  # noqa: PT012 (the block is what fails)
        running.allow("f16", "Q8_0")
        assert started.wait(60)
        threading.Timer(0.2, failed.set).start()
        raise KeyError
    assert closed == [True]
    assert not running.recorded


def test_a_file_runs_when_it_is_allowed_and_not_before(gguf: Path, tmp_path: Path) -> None:
    """A block that ends before a file was allowed, as when a check fails, leaves that file alone."""
    done = threading.Event()
    running = passes(gguf, tmp_path / "work", [])
    running._advance = lambda tokens: done.set() if tokens == 4 else None
    with running.beside():
        running.allow("f16")
        assert done.wait(60)
    assert list(running.recorded) == ["f16"]


def test_a_file_that_repeats_one_token_is_refused(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the f16 file does so too; what ran before it is recorded, so that the stage can be named."""
    repeats = {"f16": False, "Q8_0": True}
    asked = iter(repeats.values())
    monkeypatch.setattr(llama_passes, "repeats_one_token", lambda *_: next(asked))
    running = passes(gguf, tmp_path / "work", [])
    running.allow("f16", "Q8_0")
    with running.beside(), pytest.raises(IntegrityError) as caught:
        running.finish()
    assert caught.value.key == "verify.repeats"
    assert list(running.recorded) == ["f16", "Q8_0"]
    asked = iter((True, True))
    both = passes(gguf, tmp_path / "both", [])
    both.allow("f16", "Q8_0")
    both.finish()


def test_likely_tokens_are_those_with_the_largest_logits(gguf: Path) -> None:
    """One by one with a cache, as from an empty context each time."""
    with Runtime(gguf, n_ctx=64, threads=1, logits=True) as runtime:
        ids = list(SEQUENCES[0])
        for token in itertools.islice(runtime.likely_tokens(ids), 12):
            assert token == int(runtime_alone(gguf, ids).argmax())
            ids.append(token)


def runtime_alone(gguf: Path, ids: list[int]) -> Any:
    with Runtime(gguf, n_ctx=64, threads=1, logits=True) as runtime:
        return runtime.logits(ids)[-1]


@pytest.mark.parametrize(
    ("tokens", "repeats"), [([7] * 40, True), ([7] * 31 + [8], False), ([7] * 5 + [2] * 40, False), ([2] * 40, False)]
)
def test_one_token_repeats_until_another_or_the_end(tokens: list[int], repeats: bool) -> None:
    speaking: Any = SimpleNamespace(likely_tokens=lambda _prompt: iter(tokens))
    assert repeats_one_token(speaking, [1], end_token=2) is repeats
