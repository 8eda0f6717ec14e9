"""Reads a report.json and checks its kind and version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aegis.errors import IntegrityError
from aegis.limits import RECORD_BYTES, read_json


def read_versioned(path: Path, schema: str, version: int, *, damaged: str, other: str) -> dict[str, Any]:
    """Read a report of one kind and version.

    Args:
        damaged: the key of the message for a file that is not a report.
        other: the key of the message for a report of another kind or version.

    Raises:
        IntegrityError: one of these two.
    """
    try:
        report = read_json(path, RECORD_BYTES)
        found = (report["schema"], report["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(damaged, path=path, name=type(error).__name__, error=error) from None
    if found != (schema, version):
        raise IntegrityError(
            other, path=path, found_schema=found[0], found_version=found[1], schema=schema, schema_version=version
        )
    return dict(report)
