"""Values as a report's page shows them."""

from __future__ import annotations

from pathlib import Path

from aegis.data.sources import names_hub_dataset


def public(value: object) -> str:
    """Return a Hub id as it is, or the last part of a local path: the rest of the path is private."""
    text = as_text(value)
    return text if names_hub_dataset(text) else Path(text).name or text


def as_text(value: object) -> str:
    """Format a setting: a list as its items, a dash for nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def as_number(value: object, form: str) -> str:
    """Format a number; a dash for anything else."""
    return format(value, form) if isinstance(value, int | float) else "-"
