"""Makes untrusted text safe on a terminal, and in a command that a person copies.

Names of files, templates, a GGUF's metadata, a tool's log and a model's own output may contain anything: an escape
sequence that changes the screen or the clipboard, or `$(...)` that a shell would run.
"""

from __future__ import annotations

import os
import re
import shlex
import string
from typing import Any

from aegis.messages.secrets import without_secrets

# C0 except tab and line feed, DEL and C1, which a terminal obeys; marks that change the direction of text; halves of
# surrogate pairs, which no stream can write
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_POWERSHELL_PLAIN = re.compile(r"[\w./\\:=+-]+")
_POWERSHELL_QUOTES = re.compile("(['\u2018-\u201b])")
"""Each of these ends a PowerShell text in single quotes; doubled, it is the character itself."""


def printable(text: str) -> str:
    r"""Write out every character that a terminal would obey, as \x1b; a second application changes nothing."""
    text = text.replace("\r\n", "\n")
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shown(text: str) -> str:
    """Make a text safe for a terminal or a log: printable, and without secrets."""
    return printable(without_secrets(text))


def shell_word(word: object, *, windows: bool = os.name == "nt") -> str:
    """Quote one word of a command line if necessary, for a POSIX shell, or on Windows for PowerShell."""
    text = os.fspath(word) if isinstance(word, os.PathLike) else str(word)
    if not windows:
        return shlex.quote(text)
    doubled = _POWERSHELL_QUOTES.sub(r"\1\1", text)
    return text if _POWERSHELL_PLAIN.fullmatch(text) else f"'{doubled}'"


def shell_program(path: object, *, windows: bool = os.name == "nt") -> str:
    """Quote the first word of a command line; PowerShell runs a quoted one only after the call operator &."""
    word = shell_word(path, windows=windows)
    return f"& {word}" if windows and word.startswith("'") else word


def fill(text: str, values: dict[str, Any]) -> str:
    """Fill a message's placeholders and apply `shown`; {x:shell} is a word of a command, {x:program} its first word."""
    return shown(_FORMATTER.vformat(text, (), values))


class _Formatter(string.Formatter):
    def convert_field(self, value: Any, conversion: str | None) -> Any:
        try:
            return super().convert_field(value, conversion)
        except ValueError:  # Python writes no integer of more than 4,300 digits
            return f"<{type(value).__name__}>"

    def format_field(self, value: Any, format_spec: str) -> Any:
        if format_spec == "shell":
            return shell_word(value)
        if format_spec == "program":
            return shell_program(value)
        return super().format_field(value, format_spec)


_FORMATTER = _Formatter()
