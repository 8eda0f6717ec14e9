"""Refuses a model folder with a link out of it, a pipe or a device.

A symbolic link in an untrusted folder may point to any file of this machine. The content of a base ends up in merged/,
in its manifest and on the Hub, so no file outside the folder is read, hashed, copied or removed.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from aegis.errors import IntegrityError
from aegis.limits import CONFIG_BYTES, INDEX_BYTES, TOKENIZER_BYTES

_SHA256 = re.compile("[0-9a-f]{64}")


_POINTER, _POINTER_BYTES = b"version https://git-lfs", 1024
"""What git checks out in place of a large file where git-lfs is not installed."""


def check_own_files(folder: Path) -> None:
    """Check that a model folder contains only its own files and folders.

    A link may lead to another place in the folder and, in the Hub's cache, to the blobs of its repository.

    Raises:
        IntegrityError: a link leads out, an entry is neither file nor folder, a text is too large, or a file is a
            pointer of git-lfs; it is named.
    """
    root = folder.resolve()
    allowed = [root, *_cache_blobs(root)]
    for path in _entries(root):
        target = _target(path)
        if target is None or not any(target.is_relative_to(place) for place in allowed):
            raise IntegrityError("base.link_leads_out", path=path, target=target or path.readlink())
        if target.exists() and not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
            raise IntegrityError("base.no_regular_file", path=path)
        if target.is_file() and target.stat().st_size < _POINTER_BYTES and target.read_bytes().startswith(_POINTER):
            raise IntegrityError("base.lfs_pointer", path=path, folder=folder)
        if target.is_file() and target.stat().st_size > (limit := _max_bytes(path)):
            raise IntegrityError("base.too_large", path=path, most=limit / 1e6)


def refuse_spoiled(path: Path, sha256: str) -> None:
    """Remove a weight file from the Hub's cache if its content does not have the sha256 in its name.

    In the cache, a large file's name is its sha256; huggingface_hub checks only its size.

    Raises:
        IntegrityError: the file was removed.
    """
    blob = path.resolve()
    known = path.is_symlink() and blob.parent in _cache_blobs(path.parent.resolve()) and _SHA256.fullmatch(blob.name)
    if known and blob.name != sha256:
        path.unlink()
        blob.unlink()
        raise IntegrityError("base.spoiled_download", path_name=path.name, sha256=sha256[:12], blob_name=blob.name[:12])


def _cache_blobs(folder: Path) -> list[Path]:
    """Return the folder with the files of models--OWNER--NAME/snapshots/COMMIT; an empty list for any other folder."""
    repository = folder.parent.parent
    in_cache = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return [repository / "blobs"] if in_cache else []


def _entries(root: Path) -> Iterator[Path]:
    # os.walk does not enter a folder that is a link, so the link itself is checked
    for directory, folders, files in os.walk(root):
        yield from (Path(directory, name) for name in (*folders, *files))


def _max_bytes(path: Path) -> float:
    """Return the maximum size of a file that AEGIS or transformers reads completely; inf for weights."""
    if path.name in ("config.json", "generation_config.json"):
        return CONFIG_BYTES
    if path.name.endswith(".index.json"):
        return INDEX_BYTES
    whole = path.suffix in (".json", ".txt", ".model", ".jinja", ".md") or path.name.startswith(("LICENSE", "NOTICE"))
    return TOKENIZER_BYTES if whole else math.inf


def _target(path: Path) -> Path | None:
    """Resolve a path; None for a link that leads in a circle."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):
        return None
