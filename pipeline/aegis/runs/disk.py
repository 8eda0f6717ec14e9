"""Finds the cache folder, checks or reserves disk space before work begins, and reports a full disk."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock
from platformdirs import user_cache_dir

from aegis.errors import EnvironmentFault, UsageError, reason

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_RUST = re.compile(r"\(os error (27|28|112|122)\)")
"""safetensors wraps the system's error in its own; 112 is Windows' number for a full disk, 122 Linux's for a quota."""

_STEM_BYTES = 200  # a file name may have 255 bytes, and an ending is added

_MAX_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
"""Bits per weight of a matrix; every other type has at most Q8_0's 8.5."""

_MIN_BLOCK = 32
"""Weights in the smallest block of a quantized type, which is Q8_0's too."""

_HEADER_BYTES = 1 << 20
"""A GGUF's names, shapes and other keys than the vocabulary."""


def at_home(path: str | Path) -> Path:
    """Return a path with the home directory in place of a `~`, as a shell gives it.

    Raises:
        UsageError: it names a user whom this machine does not have.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError("disk.no_home", path=path) from None


def cache_place() -> Path:
    """Return AEGIS_CACHE_DIR, or the user's cache folder for this program; it may not exist yet.

    Raises:
        UsageError: AEGIS_CACHE_DIR names a user whom this machine does not have.
    """
    given = os.environ.get("AEGIS_CACHE_DIR")
    return at_home(given) if given else Path(user_cache_dir("aegis-soul"))


def cache_directory() -> Path:
    """Return `cache_place`, and create it if necessary.

    Raises:
        UsageError: it cannot be created.
    """
    directory = cache_place()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError("disk.no_cache", directory=directory, error=str(error)) from None
    return directory.resolve()


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside a cache's folder, for a file that is renamed out of it once it is complete.

    One process at a time has it, so what a killed one left there is removed by the next.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    place = folder / ".building"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def file_stem(name: str, otherwise: str = "model") -> str:
    """Make a safe file name from `name`: letters and digits of any script, no leading "-" or ".", at most 200 bytes."""
    clean = re.sub(r"[^\w.-]+", "-", name).encode()[:_STEM_BYTES].decode(errors="ignore")
    return clean.strip("-.") or otherwise


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full, a quota is reached, or a file is too large."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return _FULL_IN_RUST.search(str(error)) is not None


def full(path: Path, error: BaseException) -> EnvironmentFault:
    """Make the error to raise when writing `path` failed because of a full disk."""
    free = shutil.disk_usage(_existing(path)).free
    return EnvironmentFault("disk.full", path=path, free=format_bytes(free), error=reason(error))


def require_space(path: Path, needed_bytes: int, purpose: str) -> None:
    """Check before the work starts that the disk has enough space.

    Raises:
        EnvironmentFault: it has not; the message has the needed and the free bytes.
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


def reserve(file: IO[bytes], size: int, folder: Path) -> None:
    """Give an empty file in `folder` its size in bytes, and take the room for it on the disk now.

    A file that only has the size gets its room page by page. If it is mapped, the first page without room ends the
    process (SIGBUS), and nothing can report it.

    Raises:
        OSError: the disk has not that much room.
    """
    # asked first: in a failed reservation the disk is full for a moment, for all others too
    if free_bytes(folder) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS and Windows
        file.truncate(size)


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of `path`, which need not exist."""
    return shutil.disk_usage(_existing(path.absolute())).free


def format_bytes(count: float) -> str:
    """Return a size as text, in powers of 1000."""
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
    """Return the most bytes of all checkpoints that exist at one time, plus the adapter.

    A checkpoint has the trained parameters, their two moments, and perhaps the parameters for which the weights of a
    finish were rounded; one more exists until the oldest is removed.
    """
    return (keep + 1) * 4 * trained_bytes + trained_bytes


def gguf_bytes(shapes: Iterable[Sequence[int]], vocabulary_bytes: int, quants: Collection[str]) -> int:
    """Return an upper bound on the bytes of one GGUF per type, if its head has no larger type of its own.

    llama.cpp keeps vectors in float32, and a matrix whose rows it cannot divide into blocks in 16 bits.

    Args:
        shapes: those of the merged folder's tensors.
        vocabulary_bytes: size of the tokenizer's files, of which each GGUF has the vocabulary and the chat template.
    """
    vectors = whole = blocks = 0
    for shape in shapes:
        weights = math.prod(shape)
        if len(shape) < 2:
            vectors += weights
        elif shape[-1] % _MIN_BLOCK:
            whole += weights
        else:
            blocks += weights
    bits = [_MAX_BITS.get(quant, 8.5) for quant in quants]
    matrices = sum(blocks * each + whole * max(each, 16) for each in bits)
    return math.ceil(matrices / 8) + len(quants) * (4 * vectors + vocabulary_bytes + _HEADER_BYTES)
