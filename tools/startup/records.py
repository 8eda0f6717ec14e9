"""Which installed packages are whole: a killed uv leaves some that it will later take for installed."""

from __future__ import annotations

import base64
import csv
import hashlib
from pathlib import Path


def broken(site_packages: Path, *, hashes: bool = False) -> list[Path]:
    """The `.dist-info` folders of packages of which a file is missing or has another size (or, `hashes`, content).

    uv looks at METADATA only, and links it at some point between the other files; so after a SIGKILL it
    counts a package without its modules among the installed ones.
    """
    return [folder for folder in sorted(site_packages.glob("*.dist-info")) if not _is_whole(folder, hashes)]


def _is_whole(folder: Path, hashes: bool) -> bool:
    # uv and pip write INSTALLER after all of a wheel's own files: without it the installation was cut short
    if not all((folder / name).is_file() for name in ("METADATA", "RECORD", "INSTALLER")):
        return False
    with (folder / "RECORD").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if len(row) == 3]
    # compiled Python files and RECORD itself have no size there
    return bool(rows) and all(_has(folder.parent / row[0], row[1], row[2], hashes) for row in rows if row[2])


def _has(path: Path, recorded: str, size: str, hashes: bool) -> bool:
    try:
        if path.stat().st_size != int(size):
            return False
    except OSError:
        return False
    kind, _, wanted = recorded.partition("=")
    return not hashes or kind != "sha256" or _sha256(path) == wanted


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return base64.urlsafe_b64encode(hashlib.file_digest(stream, "sha256").digest()).decode().rstrip("=")
