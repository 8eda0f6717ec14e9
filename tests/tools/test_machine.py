"""Tests that an unsuitable machine is refused early, with what to install."""

import os
from pathlib import Path

import pytest
from startup import compiler, machine
from startup.console import StartError

posix = pytest.mark.skipif(os.name == "nt", reason="Windows looks for Visual Studio")


@posix
def test_a_compiler_that_cannot_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is tried, not only found."""
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("CC", "true")
    with pytest.raises(StartError, match="false cannot build a small program"):
        compiler.check_compiler()


@posix
def test_a_path_that_no_environment_can_have_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    with pytest.raises(StartError, match="virtual environment"):
        machine.check_machine(folder, needs_space=False)


def test_too_little_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NEEDED_BYTES", 10**18)
    with pytest.raises(StartError, match="Too little disk space"):
        machine.check_machine(tmp_path, needs_space=True)


def test_a_32_bit_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "maxsize", 2**31 - 1)
    with pytest.raises(StartError, match="32-bit"):
        machine.check_machine(tmp_path, needs_space=False)


@posix
@pytest.mark.parametrize(
    ("release", "command"),
    [
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "apt install build-essential"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "dnf install gcc gcc-c++"),
        ({"ID": "arch"}, "pacman -S base-devel"),
    ],
)
def test_the_package_to_install_is_the_systems_own(
    monkeypatch: pytest.MonkeyPatch, release: dict[str, str], command: str
) -> None:
    monkeypatch.setattr(compiler.sys, "platform", "linux")
    monkeypatch.setattr(compiler.platform, "freedesktop_os_release", lambda: release)
    assert command in compiler.compiler_packages()
    assert compiler.compiler_packages().count("\n") == 0
