"""Tests of every screen on pseudo-terminals of 80 and 40 columns, in both languages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aegis.cli.registry import commands
from aegis.messages import LANGUAGES
from aegis.messages.layout import cell_width

pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")

ROOT = Path(__file__).parents[2]
COLUMNS = 80
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SCREENS = """
from aegis.cli.console.reporters import ConsoleReporter
from aegis.messages.layout import terminal_columns
from tests.screen_texts import every_screen
for name, text in every_screen(terminal_columns()).items():
    ConsoleReporter().result(text, None)
"""
HELP = """
import sys
from aegis.cli import app
for name in {names!r}:
    sys.argv = ["aegis", "help", *name]
    try:
        app.main()
    except SystemExit as ended:
        assert ended.code == 0, name
"""
COPIED = re.compile(r"(aegis|ollama|llama-server) \S|^    -[Hd] '|\S{60}")
"""A command that a person copies and a path are left whole: a break would be a part of them."""
OPTION = re.compile(r"^  --\S.*$|\S{25}")
"""An option with its choices, and a word that is almost as wide as a narrow terminal."""


def seen(program: str, language: str, folder: Path, columns: int) -> str:
    """Return what a program writes to a terminal of this width, and the part that a person would not see."""
    import fcntl
    import struct
    import termios

    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=far,
        stdout=far,
        stderr=far,
        cwd=folder,
        env=inherited
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)]),
            "AEGIS_LANG": language,
            "AEGIS_LOG_DIR": str(folder / "logs"),
            "TERM": "xterm-256color",
            "PYTHONUTF8": "1",
        },
    )
    os.close(far)
    written = bytearray()
    while True:
        try:
            piece = os.read(near, 1 << 16)
        except OSError:  # Linux' end of a terminal that everybody has left
            break
        if not piece:
            break
        written += piece
    os.close(near)
    text = written.decode()
    assert child.wait() == 0, text
    return text


def too_wide(text: str, columns: int) -> list[str]:
    lines = _SEQUENCE.sub("", text).replace("\r", "").split("\n")
    whole = [line for line in lines if cell_width(line) > columns and not COPIED.search(line)]
    return [line for line in whole if columns == COLUMNS or not OPTION.search(line)]


@pytest.mark.parametrize("columns", [COLUMNS, 40])
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_line_of_a_screen_is_wider_than_the_terminal(language: str, tmp_path: Path, columns: int) -> None:
    """Colours among them, which a terminal gets; the control is a line that is too wide."""
    text = seen(SCREENS, language, tmp_path, columns)
    assert too_wide(text, columns) == []
    assert "\x1b[32mok" in text
    assert too_wide("x " * (columns // 2 + 1), columns) != []


@pytest.mark.parametrize("columns", [COLUMNS, 40])
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_line_of_help_is_wider_than_the_terminal(language: str, tmp_path: Path, columns: int) -> None:
    names = [[], *([name] for name in commands())]
    text = seen(HELP.format(names=names), language, tmp_path, columns)
    assert too_wide(text, columns) == []
    assert text.count("--json") >= len(names)
