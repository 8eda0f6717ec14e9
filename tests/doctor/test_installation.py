"""Tests that a set-up is reported finished only if it is; what is missing is named with the command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aegis.doctor import installation
from aegis.doctor.cures import requirements_of_ours
from aegis.doctor.finding import Finding


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def test_the_installation_that_runs_the_tests_is_complete() -> None:
    """The real packages of this test's environment, checked file by file."""
    found = only(installation.packages())
    assert found.state == "ok", found.detail
    assert int(found.detail.split()[0]) > len(requirements_of_ours())


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 14, 2), "ok"), ((3, 15, 0), "warn")]
)
def test_each_version_of_python_is_judged(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], state: str
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    found = only(installation.python())
    assert (found.state, "start.py setup" in found.cure) == (state, state != "ok")


@pytest.mark.parametrize(
    ("made", "state", "shown"),
    [
        ((), "ok", "of your own"),
        (("start/lock",), "fail", "not finished"),
        (("start/lock", "start/made.json", "start/setup.log"), "fail", "not finished"),
        (("start/lock", "start/made.json", "start/setup.log", "start/stamp.json"), "ok", "finished"),
    ],
)
def test_each_unfinished_state_of_the_set_up_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: tuple[str, ...], state: str, shown: str
) -> None:
    """The records of tools/start.py, whose last act is the stamp; an environment made by hand has none."""
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    found = only(installation.set_up())
    assert (found.state, shown in found.detail) == (state, True)
    assert found.cure.endswith("start.py setup") == (state == "fail")


def package(folder: Path, name: str, *, requires: str = "", version: str = "1.0") -> Path:
    """Write a package as pip does: a module of 10 bytes, and its RECORD."""
    (folder / f"{name}.py").write_bytes(b"0123456789")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}", encoding="utf-8"
    )
    (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    (info / "RECORD").write_text(f"{name}.py,sha256=x,10\n{info.name}/RECORD,,\n", encoding="utf-8")
    return info


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that needs a second one, which needs a third on another system only; all in a finished set-up."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(installation, "requirements_of_ours", lambda: ["aegisfirst>=1,<2"])
    package(tmp_path, "aegisfirst", requires="Requires-Dist: aegissecond>=1\n")
    package(tmp_path, "aegissecond", requires='Requires-Dist: nowhere; sys_platform == "plan9"\n')
    return tmp_path


def test_a_complete_installation_passes(wanted: Path) -> None:
    assert only(installation.packages()) == Finding("packages", "ok", "2 needed, all installed and complete")


def test_a_missing_package_is_named_with_the_command(wanted: Path) -> None:
    (wanted / "aegissecond-1.0.dist-info").rename(wanted / "gone")
    found = only(installation.packages())
    assert (found.state, found.detail) == ("fail", "missing: aegissecond")
    assert found.cure.startswith(sys.executable)
    assert found.cure.endswith("aegissecond")


@pytest.mark.parametrize("damage", ["module", "size", "record"])
def test_a_half_installed_package_counts_as_missing(wanted: Path, damage: str) -> None:
    info = wanted / "aegissecond-1.0.dist-info"
    if damage == "module":
        (wanted / "aegissecond.py").unlink()
    elif damage == "size":
        (wanted / "aegissecond.py").write_bytes(b"0123")
    else:
        (info / "RECORD").unlink()
        (info / "INSTALLER").unlink()
    found = only(installation.packages())
    assert (found.state, found.detail) == ("fail", "incomplete: aegissecond")
    assert "--ignore-installed --no-deps" in found.cure
    assert found.cure.endswith("aegissecond")


def test_a_package_of_another_version_is_named(wanted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "requirements_of_ours", lambda: ["aegisfirst>=2"])
    found = only(installation.packages())
    assert (found.state, found.detail) == ("fail", "another version: aegisfirst 1.0 (wanted >=2)")


def test_an_unfinished_set_up_is_advised_to_run_again(wanted: Path) -> None:
    """pip by hand would mend one package of many."""
    (wanted / "start").mkdir()
    (wanted / "aegissecond.py").unlink()
    assert only(installation.packages()).cure.endswith("start.py setup")


def test_a_missing_packaging_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an environment without any package, the missing names are still reported."""
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    monkeypatch.setattr(installation.metadata, "distributions", lambda: iter(()))
    found = only(installation.packages())
    assert found.state == "fail"
    assert all(name in found.detail for name in ("bitsandbytes", "llama-cpp-python", "packaging", "torch", "typer"))
