"""Tests of start.py: an old Python can parse it and gets a message, and --help names every command."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


def start(tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(tools / "start.py"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture
def door(tools: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("start", tools / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_start_py_can_be_parsed_by_python_3_8(tools: Path) -> None:
    """An old Python can read the file, and so can say what it lacks."""
    ast.parse((tools / "start.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    with pytest.raises(SyntaxError):  # the control: this check can fail
        ast.parse("match 1:\n    case 1: pass\n", feature_version=(3, 8))


def test_an_old_python_gets_a_message(
    door: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    assert door.main(["demo"]) == 3
    assert "needs Python 3.11 or newer; this is Python 3.8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "command", "rest"),
    [
        (["demo"], "demo", []),
        (["demo", "--", "--max-steps", "3"], "demo", ["--max-steps", "3"]),
        (["test", "-k", "soul", "-x"], "test", ["-k", "soul", "-x"]),
    ],
)
def test_arguments_after_the_command_are_passed_on(
    door: ModuleType, argv: list[str], command: str, rest: list[str]
) -> None:
    arguments = door.parse(argv)
    assert (command, rest) == (arguments.command, arguments.rest)


def test_help_names_every_command(tools: Path) -> None:
    result = start(tools, "--help")
    assert result.returncode == 0
    for command in ("demo", "test", "setup"):
        assert command in result.stdout


@pytest.mark.parametrize("arguments", [[], ["fly"], ["setup", "--now"], ["lock"]])
def test_wrong_usage_is_exit_2(tools: Path, arguments: list[str]) -> None:
    assert start(tools, *arguments).returncode == 2
