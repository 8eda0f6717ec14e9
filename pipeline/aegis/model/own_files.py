"""What a model folder may hold: files and folders of its own; no link out of it, no pipe and no device.

A stranger's folder may name any file of this machine by a symbolic link. What is read of a base ends up in merged/, in
its manifest and on the Hub, so nothing that lies elsewhere is read, hashed, copied or removed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from aegis.errors import IntegrityError

_SHA256 = re.compile("[0-9a-f]{64}")


def check_own_files(folder: Path) -> None:
    """Refuse a model folder in which anything is not its own.

    Links are followed inside the folder, and from a folder in the Hub's cache into the blobs of its repository.

    Raises:
        IntegrityError: naming the link that leads out, or what is neither file nor folder.
    """
    root = folder.resolve()
    allowed = [root, *_cache_blobs(root)]
    for path in _entries(root):
        target = _target(path)
        if target is None or not any(target.is_relative_to(place) for place in allowed):
            raise IntegrityError("base.link_leads_out", path=path, target=target or path.readlink())
        if target.exists() and not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
            raise IntegrityError("base.no_regular_file", path=path)


def refuse_spoiled(path: Path, sha256: str) -> None:
    """Remove a weight file from the Hub's cache if its content is not what its name there says, and refuse it.

    The cache calls a large file by its sha256, and the Hub's library looks at its size alone.

    Raises:
        IntegrityError: it has been removed.
    """
    blob = path.resolve()
    known = path.is_symlink() and blob.parent in _cache_blobs(path.parent.resolve()) and _SHA256.fullmatch(blob.name)
    if known and blob.name != sha256:
        path.unlink()
        blob.unlink()
        raise IntegrityError("base.spoiled_download", path_name=path.name, sha256=sha256[:12], blob_name=blob.name[:12])


def _cache_blobs(folder: Path) -> list[Path]:
    """Where the files of models--OWNER--NAME/snapshots/COMMIT really are; nothing for any other folder."""
    repository = folder.parent.parent
    in_cache = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return [repository / "blobs"] if in_cache else []


def _entries(root: Path) -> Iterator[Path]:
    # os.walk does not enter a folder that is a link: what it leads to is judged as a whole
    for place, folders, files in os.walk(root):
        yield from (Path(place, name) for name in (*folders, *files))


def _target(path: Path) -> Path | None:
    """Where a path ends; None for a link that leads in a circle."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):
        return None
