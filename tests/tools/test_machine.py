"""Tests that an unsuitable machine is refused early, with what to install."""

import os
from pathlib import Path

import pytest
from startup import compiler, machine
from startup.console import StartError

posix = pytest.mark.skipif(os.name == "nt", reason="Windows looks for Visual Studio")


def test_too_little_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NEEDED_BYTES", 10**18)
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: False)
    machine.check_machine(tmp_path, needs_space=False)
    with pytest.raises(StartError, match="Too little disk space"):
        machine.check_machine(tmp_path, needs_space=True)


@pytest.mark.parametrize(
    ("part", "name", "value", "found"),
    [
        ("sys", "maxsize", 2**31 - 1, "32-bit"),
        ("platform", "machine", lambda: "riscv64", "riscv64"),
        ("sysconfig", "get_config_var", lambda name: "x86_64-pc-linux-musl", "musl"),
    ],
)
def test_a_machine_without_pytorch_is_refused_by_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, name: str, value: object, found: str
) -> None:
    monkeypatch.setattr(getattr(machine, part), name, value)
    with pytest.raises(StartError, match=f"no packages for this Python.*{found}"):
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
