"""Tests a fixed sample of the kill points; `python tools/sweep_crashes.py` takes them all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import harness
from tests.faults.harness import JOBS, KillPoint, Laboratory, Operation

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD"),
    pytest.mark.timeout(600),
]
SAMPLE = {"train": 6, "merge": 6, "export": 4, "verify": 2, "run": 2}


@pytest.mark.parametrize("job", JOBS)
def test_a_command_killed_anywhere_and_started_again_gives_the_same_bytes(laboratory: Laboratory, job: str) -> None:
    points = laboratory.points(job)
    chosen = random.Random(1618).sample(points, SAMPLE[job])
    outcomes = [laboratory.attempt(point) for point in chosen]
    assert [f"{outcome.point}: {outcome.fault}" for outcome in outcomes if not outcome.recovered] == []


def test_a_training_killed_at_any_moment_ends_in_the_same_bytes(laboratory: Laboratory) -> None:
    """Ten moments instead of operations: between steps, while loading, while the data are read."""
    clock = random.Random(2)
    outcomes = [laboratory.attempt_after("train", clock.uniform(0, 0.15)) for _ in range(10)]
    assert [fault for _, fault in outcomes if fault] == []
    assert sum(alive for alive, _ in outcomes) >= 2


def test_every_kind_of_file_operation_is_counted(laboratory: Laboratory) -> None:
    """Python's own writers, safetensors' in Rust, numpy's tofile in the converter, llama.cpp's streams in C++."""
    seen = {
        (o.kind, Path(o.path).name.partition("-")[0]) for job in ("train", "export") for o in laboratory.operations(job)
    }
    kinds = {kind for kind, _ in seen}
    assert kinds == {"open", "write", "truncate", "fsync", "rename", "unlink", "rmdir", "mkdir"}
    written = {o.path for o in laboratory.operations("train") if o.kind == "write"}
    assert any("/.tmp" in path for path in written), "safetensors' temporary file"
    gguf = [o for o in laboratory.operations("export") if o.kind == "write" and "/.part-" in o.path]
    assert len({o.path for o in gguf}) == 2
    assert sum(o.size for o in gguf) > 2_000_000


WRITER = """
import os, sys
with open(sys.argv[1] + "/file", "wb", buffering=0) as file:
    file.write(b"x" * 1000)
os.rename(sys.argv[1] + "/file", sys.argv[1] + "/final")
"""


@pytest.mark.parametrize(
    ("number", "mode", "left"),
    [
        (1, "before", {}),
        (1, "after", {"file": 0}),
        (2, "before", {"file": 0}),
        (2, "torn", {"file": 500}),
        (2, "after", {"file": 1000}),
        (3, "before", {"file": 1000}),
        (3, "after", {"final": 1000}),
    ],
)
def test_the_process_is_killed_at_the_chosen_operation(
    tmp_path: Path, number: int, mode: str, left: dict[str, int]
) -> None:
    """The harness itself, with a writer that protects nothing: only the earlier operations have happened."""
    shim = harness.build_shim(tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    state = harness.write_state(tmp_path, below=place, target=number, mode=harness.MODES.index(mode))
    child = subprocess.run(
        [sys.executable, "-c", WRITER, str(place)],
        env={**os.environ, "LD_PRELOAD": str(shim), "CRASHPOINT_STATE": str(state)},
        check=False,
    )
    assert child.returncode == -9
    assert {path.name: path.stat().st_size for path in place.iterdir()} == left


def test_a_difference_between_folders_is_reported() -> None:
    """The control of the comparison: lost files, litter and other bytes are three different faults."""
    golden, found = {"a": "1", "b": "2"}, {"b": "3", "c": "4"}
    assert harness.differences(golden, found) == "litter: c\nmissing: a\nother bytes: b"
    point = KillPoint("train", Operation(7, "rename", 0, "run/adapter"), "before")
    assert str(point) == "train before 7: rename run/adapter"
