"""The two READMEs: the same commands in both, and each is one that exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from aegis.cli.app import app

ROOT = Path(__file__).parent.parent
ENGLISH = ROOT / "README.md"
JAPANESE = ROOT / ".github" / "README.ja.md"
PROGRAM = re.compile(r"^(aegis [a-z]|python3 |py |\. |\.venv)")


def commands(readme: Path) -> list[str]:
    """Lines of code blocks that are typed, without their comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [" ".join(line.split()) for line in lines if PROGRAM.match(line)]


def named(readme: Path) -> set[str]:
    """The `aegis …` commands that the first column of the table of commands has."""
    return set(re.findall(r"^\| `(aegis [^`]*)` \|", readme.read_text(encoding="utf-8"), re.M))


def known() -> dict[str, Any]:
    """The program's commands by name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_both_languages_have_the_same_commands() -> None:
    assert len(commands(ENGLISH)) >= 8
    assert commands(ENGLISH) == commands(JAPANESE)
    assert named(ENGLISH) == named(JAPANESE)


def test_every_command_has_its_row() -> None:
    there = {name for name, command in known().items() if not command.hidden}
    assert there == {row.split()[1] for row in named(ENGLISH)}


@pytest.mark.parametrize("line", sorted({line for line in commands(ENGLISH) if line.startswith("aegis ")}))
def test_the_program_takes_the_commands_options(line: str) -> None:
    """Asked for help behind them, it reads them all and does nothing; the control is an option that is none."""
    words = shlex.split(line)[1:]

    def ends(*more: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "aegis", *words, *more], capture_output=True, check=False
        ).returncode

    parameters = known()[words[0]].params
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options
    assert ends("--help") == 0
    assert ends("--no-such-option") == 2


def test_set_up_knows_its_commands() -> None:
    lines = [line for line in commands(ENGLISH) if "start.py" in line]
    assert {re.split(r"start\.py ", line)[1] for line in lines} == {"demo", "test"}
    for word in ("demo", "test"):
        asked = [sys.executable, "-c", f"import start; start.parse([{word!r}])"]
        assert subprocess.run(asked, cwd=ROOT / "tools", check=False).returncode == 0


def test_every_link_between_files_leads_somewhere() -> None:
    for readme in (ENGLISH, JAPANESE):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", readme.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (readme.parent / target).exists(), (readme.name, target)
