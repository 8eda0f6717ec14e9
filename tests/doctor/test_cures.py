"""Tests that the fixing command fits the kind of installation and keeps this program's version bounds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aegis.doctor import cures

MADE: dict[str, tuple[str, str]] = {
    "start.py": ("venv/start/lock", ""),
    "uv tool": ("venv/uv-receipt.toml", ""),
    "uvx": ("archive-v0/venv/pyvenv.cfg", "home = /usr\nuv = 0.13.9\n"),
    "uv": ("venv/pyvenv.cfg", "home = /usr\nuv = 0.13.9\n"),
    "pip": ("venv/pyvenv.cfg", "home = /usr\n"),
}


@pytest.fixture(params=MADE)
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an installed program without a checkout, in an environment of each kind."""
    how = str(request.param)
    name, text = MADE[how]
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    prefix = path.parents[1] if how == "start.py" else path.parent
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    monkeypatch.setattr(cures, "CHECKOUT", tmp_path / "none")
    monkeypatch.setattr(cures, "WINDOWS", False)
    monkeypatch.setattr(cures, "_version", lambda: "0.1.0")
    needs = ["torch>=2.11,<2.14", "peft>=0.19,<0.22", "atheris>=3; sys_platform == 'linux'"]
    monkeypatch.setattr(cures.metadata, "requires", lambda _: needs)
    return how


def test_the_kind_of_installation_is_recognized(made: str) -> None:
    assert cures.how_installed() == made


def test_a_new_installation_uses_the_command_of_its_kind(made: str) -> None:
    assert (
        cures.set_up_again()
        == {
            "start.py": "python3 tools/start.py setup",
            "uv tool": "uv tool install --reinstall aegis-soul==0.1.0",
            "uvx": "uvx --refresh aegis-soul==0.1.0",
            "uv": "uv pip install --python /env/bin/python --reinstall-package aegis-soul --no-deps aegis-soul==0.1.0",
            "pip": "/env/bin/python -m pip install --ignore-installed --no-deps aegis-soul==0.1.0",
        }[made]
    )


def test_a_package_is_installed_within_the_projects_bounds(made: str) -> None:
    found = cures.install("peft", "somebody-elses")
    if made == "uv":
        assert found == "uv pip install --python /env/bin/python 'peft>=0.19,<0.22' somebody-elses"
    elif made == "pip":
        assert found == "/env/bin/python -m pip install 'peft>=0.19,<0.22' somebody-elses"
    else:
        assert found == cures.set_up_again()


def test_torch_is_replaced_by_the_build_that_fits_the_card(made: str) -> None:
    """uv knows the indexes by name; where pip is the installer, it brings uv."""
    by_uv = "pip install --python /env/bin/python --torch-backend=auto --reinstall-package torch 'torch>=2.11,<2.14'"
    assert (
        cures.install_torch_for_card()
        == {
            "start.py": "UV_TORCH_BACKEND=auto python3 tools/start.py setup",
            "uv tool": "uv tool install --reinstall --torch-backend=auto aegis-soul",
            "uvx": "uvx --torch-backend=auto --refresh aegis-soul",
            "uv": f"uv {by_uv}",
            "pip": f"/env/bin/python -m pip install uv; /env/bin/python -m uv {by_uv}",
        }[made]
    )


def test_commands_on_windows_are_quoted_for_powershell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(cures, "WINDOWS", True)
    assert cures.install_torch_for_card() == r'$env:UV_TORCH_BACKEND="auto"; py tools\start.py setup'


def test_a_path_with_spaces_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", r"C:\My Programs\python.exe")
    assert cures.pip("list") == r"'C:\My Programs\python.exe' -m pip list"
