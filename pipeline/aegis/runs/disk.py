"""The disk: where the cache is, whether there is room before the work, and what to say when it runs out."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from platformdirs import user_cache_dir

from aegis.errors import EnvironmentFault, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_RUST = re.compile(r"\(os error (27|28|112|122)\)")
"""safetensors wraps the error in one of its own; 112 is Windows' number for a full disk, 122 Linux's for a quota."""

_STEM_BYTES = 200  # a file name may have 255, and gets an ending

_BITS_AT_MOST = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
"""Bits a weight; every other type stays under 8.6, Q8_0's, with room for the f32 norms."""


def cache_place() -> Path:
    """AEGIS_CACHE_DIR, or the user's cache folder for this program; it may not be there yet."""
    given = os.environ.get("AEGIS_CACHE_DIR")
    return Path(given).expanduser() if given else Path(user_cache_dir("aegis-soul"))


def cache_directory() -> Path:
    """`cache_place`, made if need be.

    Raises:
        UsageError: it cannot be made.
    """
    directory = cache_place()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError("disk.no_cache", directory=directory, error=str(error)) from None
    return directory.resolve()


def file_stem(name: str, otherwise: str = "model") -> str:
    """A file name made of `name`: letters, digits, dots and dashes of any script; never an option, hidden, too long."""
    clean = re.sub(r"[^\w.-]+", "-", name).encode()[:_STEM_BYTES].decode(errors="ignore")
    return clean.strip("-.") or otherwise


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the user's share of it, or what one file may take is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return _FULL_IN_RUST.search(str(error)) is not None


def full(path: Path, error: BaseException) -> EnvironmentFault:
    """The error to raise when writing `path` met a full disk."""
    free = shutil.disk_usage(_existing(path)).free
    return EnvironmentFault("disk.full", path=path, free=format_bytes(free), error=error)


def require_space(path: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse before the work starts if the disk cannot hold it.

    Raises:
        EnvironmentFault: with what is needed and what is free.
    """
    free = shutil.disk_usage(_existing(path)).free
    if free < needed_bytes:
        raise EnvironmentFault(
            "disk.too_small",
            purpose=purpose,
            needed_bytes=format_bytes(needed_bytes),
            free=format_bytes(free),
            existing=_existing(path),
        )


def free_bytes(path: Path) -> int:
    """What is free on the disk that `path` is, or would be, on."""
    return shutil.disk_usage(_existing(path.absolute())).free


def format_bytes(count: float) -> str:
    """A size for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def checkpoints_bytes(trained_bytes: int, keep: int) -> int:
    """Bytes of all checkpoints kept at once plus the adapter.

    A checkpoint holds the trained parameters and their two moments; one more stands while the oldest is not yet gone.
    """
    return (keep + 1) * 3 * trained_bytes + trained_bytes


def gguf_bytes(weights: int, quants: Iterable[str]) -> int:
    """Upper bound on the bytes of one GGUF per type."""
    return int(weights * sum(_BITS_AT_MOST.get(quant, 8.6) for quant in quants) / 8)
