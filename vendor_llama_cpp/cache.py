"""The per-user cache of the unpacked converter: whole and as pinned, or not there.

A tree appears by one rename, so that a reader sees all of it or none. It is hashed again each time it is
asked for (2 MB, some milliseconds): one that was damaged or tampered with is thrown away and made anew.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from .errors import VendorError
from .fetch import verified_sdist
from .listener import Listener
from .pin import Pin, digest
from .unpack import read_tree, write_tree

CACHE_VARIABLE = "AEGIS_CACHE_DIR"
_STAGING = ".making-"
_STALE_S = 24 * 3600
_PUBLISH_ATTEMPTS = 5


def cache_dir() -> Path:
    """Where the project keeps what it can make again; AEGIS_CACHE_DIR overrides the user's own place."""
    given = os.environ.get(CACHE_VARIABLE)
    # unlike Path.expanduser, this leaves the name of an unknown user
    directory = Path(os.path.expanduser(given)) if given else Path(platformdirs.user_cache_dir("aegis-soul"))  # noqa: PTH111
    return directory.absolute()


def ensure_tree(pin: Pin, listener: Listener) -> Path:
    """The verified tree of `pin`, made now if it is not there. Needs no network when it is.

    Raises:
        VendorError: it is not there and cannot be fetched, proven genuine, or written.
    """
    home = cache_dir() / "llama.cpp"
    tree = _place(home, pin)
    if _is_whole(tree, pin):
        return tree
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        with _directory(home) as workspace, verified_sdist(pin, workspace, listener) as sdist:
            listener.step("unpack", "Unpacking llama.cpp's converter")
            contents = read_tree(sdist, pin)
        with _directory(home) as staging:
            write_tree(contents, staging / "tree")
            _publish(staging / "tree", tree, pin)
    except BrokenPipeError:  # whoever read what the listener says has gone: nothing is wrong with the cache
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        raise VendorError("disk.full" if full else "disk.unwritable", home=home, error=error) from error
    return tree


def find_tree(pin: Pin) -> Path | None:
    """The verified tree of `pin` if it is in the cache; nothing is fetched."""
    tree = _place(cache_dir() / "llama.cpp", pin)
    return tree if _is_whole(tree, pin) else None


def _place(home: Path, pin: Pin) -> Path:
    # The digest in the name keeps two releases of this project, with two pins, apart.
    return home / f"{pin.upstream_commit[:12]}-{pin.tree_sha256[:12]}"


def _is_whole(tree: Path, pin: Pin) -> bool:
    """Is the tree exactly the pinned files: none changed, none missing, none added?"""
    try:
        # Python leaves byte code beside modules and runs it instead of the source: not pinned, so it goes.
        for byte_code in list(tree.rglob("__pycache__")):
            shutil.rmtree(byte_code)
        found: dict[str, str] = {}
        for path in tree.rglob("*"):
            if path.is_symlink():
                return False
            if not path.is_dir():
                found[path.relative_to(tree).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False
    return digest(found) == pin.tree_sha256


def _publish(made: Path, tree: Path, pin: Pin) -> None:
    """Rename `made` to `tree`. If another process was faster, its tree is as good; a damaged one goes."""
    for attempt in range(_PUBLISH_ATTEMPTS):
        try:
            made.replace(tree)
        except OSError:
            if _is_whole(tree, pin):
                return
            if attempt == _PUBLISH_ATTEMPTS - 1:
                raise
            time.sleep(0.1 * attempt)  # on Windows a scanner may hold a file for a moment
            if os.path.lexists(tree):
                # out of sight at once, then deleted with the staging directory
                tree.replace(made.with_name(f"damaged-{attempt}"))
        else:
            return


@contextmanager
def _directory(home: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=_STAGING, dir=home))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _sweep(home: Path) -> None:
    """Remove what a killed process left here a day or more ago."""
    for leftover in home.glob(f"{_STAGING}*"):
        try:
            stale = time.time() - leftover.stat().st_mtime > _STALE_S
        except OSError:
            continue
        if stale:
            shutil.rmtree(leftover, ignore_errors=True)
