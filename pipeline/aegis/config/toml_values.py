"""Writes values as a TOML file has them, for files and for messages about files."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping


def as_toml(value: object) -> str:
    """Return a value in TOML's syntax, with strings escaped."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | os.PathLike):
        escaped = "".join(
            f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else "\\" + c if c in '"\\' else c for c in str(value)
        )
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {as_toml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)
