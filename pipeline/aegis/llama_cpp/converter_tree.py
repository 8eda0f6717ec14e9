"""Finds the source tree of llama.cpp's converter: a flag's, LLAMA_CPP_DIR's, or the pinned one."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

from aegis import progress
from aegis.errors import AegisError, EnvironmentFault, IntegrityError, UsageError
from aegis.messages import phrase
from aegis.runs.disk import at_home
from aegis.vendored import vendor_llama_cpp

CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP_DIR"

_FAULTS: dict[str, type[AegisError]] = {
    "fetch": EnvironmentFault,
    "disk": EnvironmentFault,
    "hash": IntegrityError,
    "archive": IntegrityError,
}


def find_converter(override: Path | None = None) -> Path:
    """Return the converter's directory: `override`, else LLAMA_CPP_DIR, else the pinned tree, downloaded if necessary.

    Returns:
        An absolute path.

    Raises:
        UsageError: the named directory has no converter.
        EnvironmentFault: the pinned tree is not in the cache, and cannot be downloaded or written.
        IntegrityError: the download is not the pinned release.
    """
    if (named := _named(override)) is not None:
        return named
    return pinned_converter()


def converter_digest(tree: Path) -> str:
    """Return a hash of the converter's own code: its answers depend on it, and a checkout changes in its place."""
    digest = hashlib.sha256()
    for path in (*sorted(tree.glob("conversion/*.py")), *sorted(tree.glob("*.py"))):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def pinned_converter() -> Path:
    """Return the pinned release's directory, even if another is named: only this one fits the installed libraries.

    Raises:
        EnvironmentFault, IntegrityError: as in `find_converter`.
    """
    try:
        with ExitStack() as held:
            return vendor_llama_cpp.converter_tree(_Teller(held))
    except vendor_llama_cpp.VendorError as error:
        # that package has its own English messages; its codes are the names in our catalogue
        raise _FAULTS[error.kind](f"vendor.{error.code}", **error.facts) from error


class _Teller:
    """Reports the download; a bar opens with the first bytes, and closes with the stack."""

    def __init__(self, held: ExitStack) -> None:
        self._held = held
        self._pin = vendor_llama_cpp.load_pin()
        self._bar: progress.Task | None = None

    def step(self, name: vendor_llama_cpp.Step, text: str) -> None:
        del text  # that package's own English
        if name == "download":
            megabytes = self._pin.size_bytes / 1e6
            progress.say(phrase("converter_tree.downloading", sdist=self._pin.sdist, megabytes=megabytes))
            return
        self._held.close()
        if name == "check":
            progress.say(phrase("converter_tree.checking", sdist=self._pin.sdist))
        else:
            progress.say(phrase("converter_tree.unpacking"))

    def fetched(self, more_bytes: int) -> None:
        if self._bar is None:
            bar = progress.task(phrase("converter_tree.download"), self._pin.size_bytes, "B")
            self._bar = self._held.enter_context(bar)
        self._bar.advance(more_bytes)


def converter_at_hand(override: Path | None = None) -> Path | None:
    """Return the converter's directory like `find_converter`, but None if the pinned tree would have to be downloaded.

    Raises:
        UsageError: the named directory has no converter.
    """
    return _named(override) or vendor_llama_cpp.kept_tree()


def _named(override: Path | None) -> Path | None:
    if override is not None:
        return _checked(override, phrase("converter_tree.named_by_us"))
    named = os.environ.get(VARIABLE)
    return _checked(Path(named), VARIABLE) if named else None


def _checked(directory: Path, source: str) -> Path:
    tree = at_home(directory).absolute()
    if not (tree / CONVERTER).is_file():
        raise UsageError("converter_tree.no_checkout", tree=tree, source=source, converter=CONVERTER)
    return tree
