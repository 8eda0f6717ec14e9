"""Tests of the findings on memory, disks, names and console: each is reported, with a fix if it falls short."""

from __future__ import annotations

import io
import os
import platform
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from aegis.doctor import machine
from aegis.doctor.finding import Finding


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def test_the_memory_of_this_machine_is_reported() -> None:
    found = only(machine.memory())
    assert " GB of " in found.detail


@pytest.mark.parametrize(("release", "cure"), [("6.6.87-microsoft-standard-WSL2", "wsl"), ("6.1.0-debian", "close")])
def test_too_little_memory_is_reported(monkeypatch: pytest.MonkeyPatch, release: str, cure: str) -> None:
    """WSL's half of the machine can be raised; elsewhere something has to be closed."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * 10**9, available=2 * 10**9))
    monkeypatch.setattr(platform, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(machine, "_container_limit", lambda: None)
    found = only(machine.memory())
    assert (found.state, cure in found.cure) == ("warn", True)
    assert ("WSL" in found.detail) == (cure == "wsl")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, none = tmp_path / "memory.max", tmp_path / "none"
    limit.write_text("3000000000\n", encoding="ascii")
    none.write_text("max\n", encoding="ascii")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * 10**9, available=7 * 10**9))
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(none), str(limit)))
    found = only(machine.memory())
    assert (found.state, "3.0 GB of 3.0 GB free, the limit of this container" in found.detail) == ("warn", True)
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(none),))
    assert only(machine.memory()).state == "ok"


def test_the_directories_that_are_written_to_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders need not be there yet; looking leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    found = {finding.name: finding for finding in machine.disks()}
    assert list(found) == ["disk_base_models", "disk_cache", "disk_runs", "disk_temporary"]
    assert str(tmp_path / "deep" / "cache") in found["disk_cache"].detail
    assert str(tmp_path / "artifacts") in found["disk_runs"].detail
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_read_only_one_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert machine._disk("disk", tmp_path, 8e9, "cure") == Finding(
        "disk", "warn", f"1.0 GB free, {tmp_path}; a 3.8 B base needs 8.0 GB", "cure"
    )

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refused)  # type: ignore[attr-defined]
    found = machine._disk("disk", tmp_path, 0, "cure")
    assert (found.state, "nothing can be written (Permission denied)" in found.detail) == ("fail", True)


def test_a_file_system_without_non_ascii_names_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine where names are UTF-8; on Windows some programs cannot open them."""
    place = tmp_path / "キャッシュ"
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(place))
    if os.name != "nt":
        found = only(machine.paths())
        assert (found.state, str(place) in found.detail) == ("ok", True)
    monkeypatch.setattr(machine, "WINDOWS", True)
    found = only(machine.paths())
    assert (found.state, str(place) in found.detail, "AEGIS_CACHE_DIR" in found.cure) == ("warn", True, True)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "cp932")
    assert "PYTHONUTF8" in only(machine.paths()).cure


@pytest.mark.parametrize(("encoding", "state"), [("utf-8", "ok"), ("cp932", "warn"), ("ascii", "warn")])
def test_a_console_without_utf8_is_reported(monkeypatch: pytest.MonkeyPatch, encoding: str, state: str) -> None:
    monkeypatch.setattr(sys, "__stdout__", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    found = only(machine.console())
    assert (found.state, encoding in found.detail, "PYTHONUTF8" in found.cure) == (state, True, state == "warn")


def test_the_progress_bar_does_not_hide_the_consoles_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich replaces sys.stdout while it draws, and the doctor runs under a bar."""
    from rich.console import Console
    from rich.progress import Progress

    monkeypatch.setattr(sys, "__stdout__", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)):
        assert sys.stdout is not sys.__stdout__
        assert only(machine.console()).state == "ok"
