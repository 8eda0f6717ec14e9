"""Tests of a run's directory: one process at a time holds it, and no leftovers stay."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aegis.errors import LockedError, UsageError
from aegis.runs.lock import check_held
from aegis.runs.manifest import Manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run


def holder(root: Path) -> subprocess.Popen[bytes]:
    code = f"""
        import time
        from pathlib import Path
        from aegis.runs.run import Run
        with Run(Path({str(root)!r})).lock():
            (Path({str(root)!r}) / "work").touch()
            print("held", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"held"
    return child


def test_a_held_run_names_its_holder_and_a_killed_ones_lock_is_taken_over(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    child = holder(run.root)
    assert child.stdout is not None
    with child.stdout:
        try:
            with pytest.raises(LockedError, match=f"process {child.pid}"), run.lock():
                pytest.fail("two at once")
        finally:
            child.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
            child.wait(20)
    with run.lock():
        assert (run.root / "run.pid").read_text() == str(os.getpid())
    assert not (run.root / "run.pid").exists()


def test_a_run_that_wrote_nothing_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), Run(tmp_path / "run").lock():
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_wrote_a_file_keeps_its_directory(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "run")
    with run.lock():
        run.metrics.write_text("{}\n")
    assert run.metrics.is_file()
    with run.lock():
        pass
    assert run.metrics.is_file()


def test_a_run_deleted_while_it_is_locked_is_no_error(tmp_path: Path) -> None:
    """There is nothing to remove then."""
    import shutil

    run = Run(tmp_path / "run")
    with run.lock():
        shutil.rmtree(run.root, ignore_errors=True)


@pytest.mark.parametrize("root", ["file", "file/run", "n" * 300])
def test_a_path_that_is_not_a_directory_is_a_usage_error(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be used as a run directory"), Run(tmp_path / root).lock():
        pytest.fail("locked")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("root", [".", "run"])
def test_a_read_only_directory_is_a_usage_error(tmp_path: Path, root: str) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot be used"), Run(tmp_path / root).lock():
            pytest.fail("locked")
    finally:
        tmp_path.chmod(0o700)


def take_over(root: Path) -> None:
    """Move the run away, and start another one under its name."""
    root.rename(root.with_name("moved"))
    root.mkdir()
    (root / "run.lock").touch()


LOST = {
    "removed": lambda root: (root / "run.lock").unlink(),
    "replaced": lambda root: ((root / "run.lock").unlink(), (root / "run.lock").touch()),
    "moved": lambda root: root.rename(root.with_name("moved")),
    "taken over": take_over,
    "deleted": shutil.rmtree,
}


@pytest.mark.skipif(os.name == "nt", reason="Windows lets no held file go")
@pytest.mark.parametrize("how", LOST)
def test_a_process_that_has_lost_a_run_writes_nothing_more_to_it(tmp_path: Path, how: str) -> None:
    """Earlier files stay, later ones are refused; another process's files stay, and it can hold the lock."""
    run, manifest = Run(tmp_path / "run"), Manifest("train", {}, {}, {})
    with pytest.raises(LockedError) as lost, run.lock():  # noqa: PT012 (what comes before it is the control)
        with publishing(run.checkpoints / "step_000001", manifest) as staging:
            (staging.path / "x").touch()
        check_held(run.metrics)
        LOST[how](run.root)
        if how == "taken over":
            (run.root / "run.pid").write_text("another")
        with pytest.raises(LockedError) as early, publishing(run.checkpoints / "step_000002", manifest):
            pytest.fail("it was begun")
        assert early.value.key == "runs.lost"
        check_held(run.metrics)
    assert lost.value.key == "runs.lost"
    assert not (run.checkpoints / "step_000002").exists()
    if how == "taken over":
        assert (run.root / "run.pid").read_text() == "another"
    with Run(tmp_path / "run").lock():
        check_held(run.metrics)
    check_held(run.metrics)  # held by nobody, it is nobody's to refuse


@pytest.mark.skipif(os.name == "nt", reason="Windows lets no held file go")
def test_a_run_that_is_lost_during_a_checkpoint_does_not_get_the_checkpoint(tmp_path: Path) -> None:
    run, manifest = Run(tmp_path / "run"), Manifest("train", {}, {}, {})
    with pytest.raises(LockedError) as lost, run.lock(), publishing(run.checkpoints / "step_000001", manifest):
        LOST["replaced"](run.root)
    assert lost.value.key == "runs.lost"
    assert list(run.checkpoints.iterdir()) == []


def test_a_thread_may_lock_its_run_again_and_another_may_not(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def attempt() -> str:
        try:
            with run.lock():
                return "two at once"
        except LockedError:
            return "refused"

    with ThreadPoolExecutor(1) as other, run.lock():
        (run.root / "work").touch()
        with run.lock():
            pass
        assert other.submit(attempt).result() == "refused"
        assert (run.root / "run.pid").exists()
    assert attempt() == "two at once"
