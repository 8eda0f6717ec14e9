"""Tests of publishing: a directory is there completely or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aegis.errors import EnvironmentFault, UsageError
from aegis.messages import phrase
from aegis.runs import known_hashes
from aegis.runs.manifest import MANIFEST, Manifest, file_sha256, verify_directory
from aegis.runs.publish import discard, publishing, sweep
from tests.conftest import Recorder

ASKED = Manifest("merge", {}, {}, {})


def publish(
    final: Path, content: str, *, overwrite: bool = False, during: Callable[[Path], object] = lambda _path: None
) -> None:
    with publishing(final, ASKED, overwrite=overwrite) as staging:
        (staging.path / "file").write_text(content)
        during(staging.path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_a_failed_block_leaves_no_file(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(_staging: Path) -> None:
        raise error

    with pytest.raises(error):
        publish(tmp_path / "out", "half", during=fail)
    assert names(tmp_path) == []


def test_a_failed_block_keeps_the_old_output(tmp_path: Path) -> None:
    """While the new output is written, and after a failure, the old one is there with its manifest."""

    def fail(_staging: Path) -> None:
        assert (tmp_path / "out" / "file").read_text() == "old"
        raise ValueError("half way")

    publish(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="half way"):
        publish(tmp_path / "out", "new", overwrite=True, during=fail)
    assert (tmp_path / "out" / "file").read_text() == "old"
    verify_directory(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_the_new_output_replaces_the_old(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    with publishing(tmp_path / "out", Manifest("x", {}, {}, {}), overwrite=True) as staging:
        (staging.path / "extra").write_text("of the old one")
    publish(tmp_path / "out", "new", overwrite=True)
    assert names(tmp_path / "out") == ["file", MANIFEST]
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_the_old_output_is_restored_if_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has stepped aside by then; a refused rename must not lose it."""
    publish(tmp_path / "out", "old")
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if ".staging-" in self.name:
            raise OSError(errno.EIO, "refused")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(OSError, match="refused"):
        publish(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_existing_output_is_refused_before_the_work(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    with pytest.raises(UsageError, match="exists"), publishing(tmp_path / "out", ASKED):
        pytest.fail("the work began")
    assert (tmp_path / "out" / "file").read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="not a directory"), publishing(tmp_path / "out", ASKED, overwrite=overwrite):
        pytest.fail("the work began")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_directory_that_cannot_be_created_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out", tmp_path / ("n" * 300)):
        with pytest.raises(UsageError, match="nothing can be written at"), publishing(out, ASKED):
            pytest.fail("the work began")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_a_usage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="nothing can be written"), publishing(tmp_path / "out", ASKED):
            pytest.fail("the work began")
    finally:
        tmp_path.chmod(0o700)


def test_the_next_writer_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    """A real SIGKILL in the middle: no directory at the final name, and no litter after the next try."""
    code = f"""
        import time
        from pathlib import Path
        from aegis.runs.manifest import Manifest
        from aegis.runs.publish import discard, publishing, sweep
        with publishing(Path({str(tmp_path / "out")!r}), Manifest("merge", {{}}, {{}}, {{}})) as staging:
            (staging.path / "file").write_text("half")
            print("filling", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline().strip() == b"filling"
        child.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        child.wait(20)
    assert [name for name in names(tmp_path) if not name.startswith(".out.staging-")] == []
    assert len(names(tmp_path)) == 1
    publish(tmp_path / "out", "whole")
    assert names(tmp_path) == ["out"]


def test_a_process_killed_between_the_two_renames_loses_no_output(tmp_path: Path) -> None:
    """The old one has stepped aside and the new one is not there yet: the next try brings the old one back first."""

    def fail(_staging: Path) -> None:
        raise ValueError("half way")

    publish(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.trash-1")
    with pytest.raises(ValueError, match="half way"):
        publish(tmp_path / "out", "new", overwrite=True, during=fail)
    assert names(tmp_path) == ["out"]
    verify_directory(tmp_path / "out")


def test_only_this_packages_leftovers_are_removed(tmp_path: Path) -> None:
    """Names with the letters of a pattern are names: out[1] is cleaned, and 'o*' does not clean 'out'."""
    for leftover in (".out[1].staging-7", ".out.staging-7", ".o*.trash-7"):
        (tmp_path / leftover).mkdir()
    publish(tmp_path / "out[1]", "x")
    publish(tmp_path / "o*", "x", overwrite=True)
    assert names(tmp_path) == [".out.staging-7", "o*", "out[1]"]


def test_recorded_hashes_are_those_of_the_written_files(tmp_path: Path) -> None:
    """A hash taken while writing saves reading the file again; the rest are read."""
    with publishing(tmp_path / "out", ASKED) as staging:
        (staging.path / "a").write_bytes(b"a" * 1000)
        (staging.path / "b").write_bytes(b"b" * 1000)
        staging.hashed("a", 1000, file_sha256(staging.path / "a"))
    verify_directory(tmp_path / "out")
    with publishing(tmp_path / "lie", ASKED) as staging:
        (staging.path / "a").write_bytes(b"a" * 1000)
        staging.hashed("a", 1000, "0" * 64)
    with pytest.raises(Exception, match="its manifest says"):
        verify_directory(tmp_path / "lie")


@pytest.mark.parametrize("read", [True, False], ids=["read", "hashed while written"])
def test_a_file_that_changes_after_it_was_hashed_is_hashed_again(
    tmp_path: Path, reporter: Recorder, read: bool
) -> None:
    """The manifest has the hash of what is there, and nobody trusts the earlier one; the change is reported."""
    with known_hashes.trusting():
        with publishing(tmp_path / "out", ASKED) as staging:
            for name in ("changed", "touched", "kept"):
                path = staging.path / name
                path.write_bytes(b"a" * 1000)
                seen = known_hashes.identity(path)
                staging.hashed(name, 1000, file_sha256(path), seen if read else None)
            time.sleep(0.03)  # more than a tick of the file system's clock
            (staging.path / "changed").write_bytes(b"b" * 1000)
            (staging.path / "touched").touch()
        found = verify_directory(tmp_path / "out")
    wanted = {"changed": b"b" * 1000, "touched": b"a" * 1000, "kept": b"a" * 1000}
    assert {name: file.sha256 for name, file in found.files.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()
    }
    assert verify_directory(tmp_path / "out") == found
    assert reporter.warned == [phrase("publish.changed", name="changed")]


def test_a_file_that_changes_between_its_hash_and_the_record_of_it_is_hashed_again(tmp_path: Path) -> None:
    """A caller that reads several files records their hashes later."""
    with publishing(tmp_path / "out", ASKED) as staging:
        path = staging.path / "a"
        path.write_bytes(b"a" * 1000)
        seen, before = known_hashes.identity(path), file_sha256(path)
        path.write_bytes(b"b" * 999)
        staging.hashed("a", 1000, before, seen)
    verify_directory(tmp_path / "out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux limits")
@pytest.mark.parametrize("writer", ["python", "safetensors"])
def test_a_full_disk_is_an_environment_fault(tmp_path: Path, writer: str) -> None:
    """Python raises it with an errno, safetensors as text of another error; the old directory stays."""
    import resource

    def write(staging: Path) -> None:
        if writer == "python":
            (staging / "large").write_bytes(bytes(20_000))
        else:
            save_file({"a": torch.zeros(5000)}, staging / "large.safetensors")

    publish(tmp_path / "out", "old")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        with pytest.raises(EnvironmentFault, match="could not be written") as caught:
            publish(tmp_path / "out", "new", overwrite=True, during=write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "are free" in caught.value.why
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), publishing(tmp_path / "out", ASKED):
        raise PermissionError(errno.EACCES, "no")


def test_a_busy_directory_is_tried_again_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virus scanner holds new files open for a moment."""
    tries = []
    replace = Path.replace

    def busy(self: Path, target: Path) -> Path:
        tries.append(self)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "busy")
        return replace(self, target)

    from aegis.runs import publish as module

    monkeypatch.setattr(Path, "replace", busy)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(PermissionError):
        module._rename(source, tmp_path / "target")
    tries.clear()
    monkeypatch.setattr(module, "os", type("Windows", (), {"name": "nt"}))
    module._rename(source, tmp_path / "target")
    assert (tmp_path / "target").is_dir()


def test_a_discarded_directory_frees_its_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the removal is killed, nothing is under the name, and the next sweep removes the rest."""
    publish(tmp_path / "old", "x")
    publish(tmp_path / "kept", "x")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_args, **_kwargs: None)
        discard(tmp_path / "old")
    assert names(tmp_path) == [f".old.staging-{os.getpid()}", "kept"]
    sweep(tmp_path)
    assert names(tmp_path) == ["kept"]
    discard(tmp_path / "kept")
    discard(tmp_path / "kept")
    assert names(tmp_path) == []


def test_an_error_names_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(UsageError) as refused, publishing(tmp_path / "merged", Manifest("merge", {}, {}, {})):
        pass
    assert refused.value.key == "publish.not_writable"
    assert "staging" not in str(refused.value)
    assert "Permission denied" in str(refused.value)
