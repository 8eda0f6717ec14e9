"""Tests of damaged checkpoints: they are skipped with the reason, the next one is used, and the bytes are the same."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.runs.run import Run
from aegis.training.checkpoint import list_steps
from tests.faults.forked import Ended, strike
from tests.faults.harness import Laboratory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")
LONG = ("--max-steps", "12", "--save-steps", "2", "--keep-checkpoints", "4", "--annealing-steps", "6")


def train(laboratory: Laboratory, folder: Path, *more: str) -> Ended:
    return laboratory.forked.aegis(folder, *laboratory.arguments("train"), *LONG, *more)


@pytest.fixture(scope="module")
def whole(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(laboratory, folder).code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def killed(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was killed after about its fourth checkpoint, with at least two of them."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = [*laboratory.arguments("train"), *LONG]
    assert laboratory.forked.aegis(folder, *arguments, blows=[strike(signal.SIGKILL, rows=9)]).code == -9
    assert len(list_steps(Run(folder / "run").checkpoints)) >= 2
    return folder


def edited(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda step: (step / name).write_bytes(change((step / name).read_bytes()))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file missing": lambda step: (step / "soul.safetensors").unlink(),
    "cut short": edited("resume.safetensors", lambda data: data[:-1]),
    "empty": edited("adapter_model.safetensors", lambda _data: b""),
    "one bit": edited("adapter_model.safetensors", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
    "a zeroed tail": edited("resume.safetensors", lambda data: data[:-4096] + bytes(4096)),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "half a manifest": edited("manifest.json", lambda data: data[: len(data) // 2]),
    "nothing but a folder": lambda step: [shutil.rmtree(step), step.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_checkpoint_is_skipped(
    laboratory: Laboratory, killed: Path, whole: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """Order is by step number: here the oldest has the latest date."""
    shutil.copytree(killed, tmp_path / "place")
    steps = list_steps(Run(tmp_path / "place" / "run").checkpoints)
    damage(steps[0])
    for age, step in enumerate(steps):
        os.utime(step, (age * 1000, age * 1000))
    ended = train(laboratory, tmp_path / "place")
    assert ended.code == 0, ended.output
    assert "skipping a damaged checkpoint" in ended.output
    adapter = tmp_path / "place" / "run" / "adapter"
    for path in (whole / "adapter").iterdir():
        assert (adapter / path.name).read_bytes() == path.read_bytes(), path.name


def test_training_never_starts_over_if_every_checkpoint_is_damaged(
    laboratory: Laboratory, killed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "place")
    for step in list_steps(Run(tmp_path / "place" / "run").checkpoints):
        DAMAGES["one bit"](step)
    ended = train(laboratory, tmp_path / "place")
    assert (ended.code, "every checkpoint" in ended.output) == (5, True), ended.output
    assert train(laboratory, tmp_path / "place", "--overwrite").code == 0
