"""Tests of llama.cpp's passes: they run beside other work, and are stopped when it fails."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aegis.background import Background
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


def passes(work: Path, advance: Callable[[float], object]) -> LlamaPasses:
    work.mkdir()
    counted: Any = advance
    return LlamaPasses(SEQUENCES, work, torch.device("cpu"), threads=1, end_token=None, advance=counted)


@pytest.fixture
def copied(gguf: Path, tmp_path: Path) -> Path:
    """The same file at another path."""
    return Path(shutil.copyfile(gguf, tmp_path / "copied.gguf"))


def test_the_logits_are_llama_cpps_own(gguf: Path, copied: Path, tmp_path: Path) -> None:
    """Each file's, in the order in which they were added; the second sequence's are not the first's."""
    advanced: list[float] = []
    running = passes(tmp_path / "work", advanced.append)
    with running.running():
        running.add("f16", gguf)
        running.add("f16", gguf)
        running.add("Q8_0", copied)
        found = [running.recording(name).logits for name in ("f16", "Q8_0")]
    assert advanced == [8, 3, 4, 8, 3, 4]
    assert np.array_equal(*found)
    with Runtime(gguf, n_ctx=64, threads=1, logits=True) as runtime:
        assert np.array_equal(found[0][8:11], runtime.logits(SEQUENCES[1]))
        assert not np.array_equal(found[0][:3], runtime.logits(SEQUENCES[1]))


def test_they_run_beside_the_block(gguf: Path, tmp_path: Path) -> None:
    """The block waits until a sequence is done: after it, that would never be."""
    first = threading.Event()
    running = passes(tmp_path / "work", lambda _: first.set())
    with running.running():
        running.add("f16", gguf)
        assert first.wait(60)


@pytest.mark.parametrize("has_room", [True, False])
def test_the_next_file_is_loaded_while_one_runs_if_memory_has_room(
    gguf: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    """The first pass waits here for the second file's load; with too little memory, it must end before it."""
    opened, first_is_over = {gguf: threading.Event(), copied: threading.Event()}, []

    class Noted(Runtime):
        def __init__(self, path: Path, *arguments: Any, **options: Any) -> None:
            super().__init__(path, *arguments, **options)
            opened[path].set()

        def logits(self, tokens: Any) -> Any:
            if self.path == gguf and not first_is_over:
                first_is_over.append(opened[copied].wait(60 if has_room else 1))
            return super().logits(tokens)

    monkeypatch.setattr(llama_passes, "Runtime", Noted)
    monkeypatch.setattr(llama_passes, "_has_room_for", lambda *_: has_room)
    running = passes(tmp_path / "work", lambda _: None)
    with running.running():
        running.add("f16", gguf)
        running.add("Q8_0", copied)
        assert np.array_equal(running.recording("f16").logits, running.recording("Q8_0").logits)
    assert first_is_over == [has_room]


def test_a_file_that_has_run_may_be_removed_while_the_next_one_looks_for_room(
    gguf: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verification removes the f16 file once it is compared; here it goes between the look and the sum."""
    looked = threading.Event()

    class Patient(Runtime):
        def logits(self, tokens: Any) -> Any:
            assert looked.wait(60)
            return super().logits(tokens)

    def removed() -> SimpleNamespace:
        copied.unlink(missing_ok=True)
        looked.set()
        return SimpleNamespace(available=1 << 50)

    monkeypatch.setattr(llama_passes, "Runtime", Patient)
    monkeypatch.setattr(llama_passes.psutil, "virtual_memory", removed)
    running = passes(tmp_path / "work", lambda _: None)
    with running.running():
        running.add("f16", copied)
        running.add("Q8_0", gguf)
        assert np.array_equal(running.recording("f16").logits, running.recording("Q8_0").logits)


def test_a_failure_of_the_block_stops_them(
    gguf: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the sequence that is running; nothing of llama.cpp is at work when the failure goes on."""
    failed, started = threading.Event(), threading.Event()
    opened: list[Path] = []
    closed: list[Path] = []
    advanced: list[float] = []
    stopped: list[bool] = []

    class Slow(Runtime):
        def __init__(self, path: Path, *arguments: Any, **options: Any) -> None:
            super().__init__(path, *arguments, **options)
            opened.append(path)

        def logits(self, tokens: Any) -> Any:
            started.set()
            assert failed.wait(120)
            return super().logits(tokens)

        def close(self) -> None:
            super().close()
            closed.append(self.path)

    monkeypatch.setattr(llama_passes, "Runtime", Slow)
    running = passes(tmp_path / "work", advanced.append)

    def go_on_when_stopped() -> None:
        stopped.append(running._stopped.wait(60))
        failed.set()

    with pytest.raises(KeyError), running.running():  # noqa: PT012 (the block is what fails)
        running.add("f16", gguf)
        running.add("Q8_0", copied)
        assert started.wait(60)
        Background(go_on_when_stopped)
        raise KeyError
    assert stopped == [True]
    assert sorted(closed) == sorted(opened)
    assert gguf in closed
    assert len(advanced) <= 1


def test_a_file_that_was_not_added_does_not_run(gguf: Path, tmp_path: Path) -> None:
    """As when a check fails before it may."""
    running = passes(tmp_path / "work", lambda _: None)
    with running.running():
        running.add("f16", gguf)
        running.recording("f16")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["f16.npy"]


def test_a_file_that_repeats_one_token_is_refused(
    gguf: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the f16 file does so too; what ran before it is recorded, so that the stage can be named."""
    asked = iter((False, True))
    monkeypatch.setattr(llama_passes, "repeats_one_token", lambda *_: next(asked))
    running = passes(tmp_path / "work", lambda _: None)
    with running.running():
        running.add("f16", gguf)
        running.add("Q8_0", copied)
        running.wait()
        running.recording("f16")
        with pytest.raises(IntegrityError) as caught:
            running.recording("Q8_0")
    assert caught.value.key == "verify.repeats"
    asked = iter((True, True))
    both = passes(tmp_path / "both", lambda _: None)
    with both.running():
        both.add("f16", gguf)
        both.add("Q8_0", copied)
        both.recording("Q8_0")


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
