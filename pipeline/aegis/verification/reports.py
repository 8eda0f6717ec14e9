"""A report.json on disk: which kind it says it is, and in which version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegis.errors import IntegrityError


def read_versioned(path: Path, schema: str, version: int, *, damaged: str, other: str) -> dict[str, Any]:
    """Read a report of one kind and version.

    Args:
        damaged: the key of the message for a file that is no report at all.
        other: the key of the message for one of another kind or version.

    Raises:
        IntegrityError: it is one of these.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = (report["schema"], report["version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(damaged, path=path, name=type(error).__name__, error=error) from None
    if found != (schema, version):
        raise IntegrityError(other, path=path, found=found[0], found_2=found[1], schema=schema, schema_version=version)
    return dict(report)
