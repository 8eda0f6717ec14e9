"""Finds files that AEGIS did not write, in folders that it is about to replace or to remove: it never deletes one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from aegis.errors import IntegrityError, UsageError
from aegis.runs.manifest import MANIFEST, NOT_OURS, read_manifest
from aegis.runs.metrics import read_metrics

_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave in any folder."""
_CHECKPOINT = re.compile(r"step_\d+")
_NAMED = 6


def refuse_foreign(*folders: Path) -> None:
    """Refuse to replace or remove a folder with files that no manifest lists.

    Args:
        folders: published folders, or folders of them; one that does not exist is passed over.

    Raises:
        UsageError: there is such a file; the message names the first ones.
    """
    for folder in folders:
        if found := sorted(_foreign(folder)):
            raise UsageError("foreign.files", folder=folder, names=first_names(found))


def first_names(names: Sequence[str]) -> str:
    """Return the first of these names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" (+{more})" if more > 0 else "")


def refuse_foreign_rows(*files: Path) -> None:
    """Refuse to write over a .jsonl file in which no complete line is a row of a training.

    Raises:
        UsageError: there is such a file.
    """
    for file in files:
        if file.is_file() and not read_metrics(file) and b"\n" in file.read_bytes():
            raise UsageError("foreign.files", folder=file.parent, names=file.name)


def refuse_inputs(out: Path, *inputs: Path) -> None:
    """Refuse an output folder that is an input or holds one.

    Raises:
        UsageError: it is, or does.
    """
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise UsageError("foreign.input", out=out, path=path)


def _foreign(folder: Path) -> Iterator[str]:
    """Yield the paths of the files below a folder that no manifest lists, relative to it."""
    if not folder.is_dir():
        return
    listed: set[str] | None = None
    if (folder / MANIFEST).is_file():
        try:
            listed = {*read_manifest(folder).files, MANIFEST}
        except IntegrityError as error:
            if error.key != NOT_OURS:
                return  # damaged: AEGIS wrote here, and what it wrote is not known
    elif _CHECKPOINT.fullmatch(folder.name):
        return  # it has lost its manifest
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        is_unfinished = entry.name.startswith(".") and (".staging-" in entry.name or ".trash-" in entry.name)
        # what is in a checkpoint is looked at when that checkpoint is removed, which keeps no training from going on
        is_checkpoint = listed is None and _CHECKPOINT.fullmatch(entry.name)
        if entry.name in _LITTER or is_unfinished or is_checkpoint:
            continue
        if not entry.is_dir(follow_symlinks=False):
            if listed is None or entry.name not in listed:
                yield entry.name
        elif listed is None:
            yield from (f"{entry.name}/{name}" for name in _foreign(path))
        else:
            files = (f"{entry.name}/{file.relative_to(path).as_posix()}" for file in path.rglob("*") if file.is_file())
            yield from (name for name in files if name not in listed)
