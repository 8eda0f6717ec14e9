"""Tests of a disk that becomes full: it is reported, no partial file stays, and the next run succeeds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aegis.errors import EnvironmentFault
from aegis.llama_cpp.convert import refuse_damaged
from aegis.messages import Bilingual
from aegis.report.plots.training import draw_all
from tests.faults.harness import JOBS, Laboratory

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD"),
    pytest.mark.timeout(600),
]
SAMPLE = {"train": 4, "merge": 4, "export": 3, "verify": 1, "run": 1}


@pytest.mark.parametrize("job", JOBS)
def test_every_job_recovers_from_a_disk_that_is_full_from_any_operation_on(laboratory: Laboratory, job: str) -> None:
    chosen = random.Random(5).sample(laboratory.full_points(job), SAMPLE[job])
    outcomes = [laboratory.attempt_full(point) for point in chosen]
    assert [f"{outcome.point}: {outcome.fault}" for outcome in outcomes if not outcome.recovered] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("no tmpfs may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_for_a_checkpoint_is_an_error_that_leaves_no_part_of_it(
    laboratory: Laboratory, small_disk: Path
) -> None:
    """Not played: the first checkpoint does not fit, and no torn directory is left of it."""
    ended = laboratory.forked.aegis(
        small_disk.parent, *laboratory.arguments("train"), "--run", small_disk / "run", "--lora-r", "4"
    )
    assert ended.code == 3, ended.output
    assert "disk" in ended.output
    assert "Traceback" not in ended.output
    assert [path for path in (small_disk / "run").rglob("*") if path.name not in ("run.lock", "metrics.jsonl")] in (
        [],
        [small_disk / "run" / "checkpoints"],
    )


def test_a_file_that_will_be_mapped_gets_its_room_or_an_error(small_disk: Path) -> None:
    """The control ends by SIGBUS: a file that only has the size is mapped and written."""
    mapped = "file.flush(); numpy.memmap(file.name, 'u1', 'r+')[:] = 1"
    ends = []
    for sized in ("disk.reserve(file, 1 << 20, folder)", "file.truncate(1 << 20)"):
        code = (
            "import sys, numpy; from pathlib import Path; from aegis.runs import disk\n"
            f"folder = Path(sys.argv[1]); file = (folder / 'states').open('w+b'); {sized}; {mapped}"
        )
        ended = subprocess.run([sys.executable, "-c", code, small_disk], capture_output=True, text=True, check=False)
        ends.append((ended.returncode, "No space left" in ended.stderr))
    assert ends == [(1, True), (-signal.SIGBUS, False)]


def test_a_picture_that_does_not_fit_is_an_error(small_disk: Path) -> None:
    """The jobs above write their values only."""
    angles = np.linspace(0, 3.1, 40)
    with pytest.raises(OSError, match="No space left"):
        draw_all([], angles, angles, 0.5, small_disk)


def test_a_file_damaged_by_a_full_disk_is_reported_as_the_full_disk(small_disk: Path) -> None:
    """The quantizer ends well when its last write does not."""
    part = small_disk / "part.gguf"
    with pytest.raises(OSError, match="No space left"):
        part.write_bytes(bytes(1 << 20))
    with pytest.raises(EnvironmentFault, match="disk is full"):
        refuse_damaged(part, Bilingual.same("quantizer"))
