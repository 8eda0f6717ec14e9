"""Values as a report's page shows them."""

from __future__ import annotations

from aegis.data.sources import public_name


def public(value: object) -> str:
    """Format a setting that may hold a path: a Hub id as it is, a local path as its last part."""
    return public_name(as_text(value))


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
