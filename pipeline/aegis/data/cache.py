"""Windows on disk: one safetensors file, written whole or not at all, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from aegis.data.packing import Windows
from aegis.errors import EnvironmentFault

FORMAT = "aegis-data 1"

_ARRAYS = ("tokens", "trained", "first_token", "first_piece")


def store(path: Path, windows: Mapping[str, Windows], report: dict[str, Any]) -> None:
    """Write named windows and a JSON report to `path`.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    arrays = {
        f"{name}.{array}": np.ascontiguousarray(getattr(part, array))
        for name, part in windows.items()
        for array in _ARRAYS
    }
    shape = {name: [part.max_length, part.pad_token_id] for name, part in windows.items()}
    body = json.dumps({"windows": shape, "report": report})
    metadata = {"format": FORMAT, "body": body, "sha256": _digest(body, arrays)}
    building = path.parent / ".building"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # one writer at a time, so that whatever stands in the one place for unfinished files is a killed one's
        with filelock.FileLock(path.parent / ".lock"):
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            try:
                save_file(arrays, building / path.name, metadata=metadata)
                (building / path.name).replace(path)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise EnvironmentFault("data_cache.not_kept", parent=path.parent, error=str(error)) from error


def load(path: Path) -> tuple[dict[str, Windows], dict[str, Any]] | None:
    """Read what `store` wrote; None when the file is absent, and when it is damaged, which removes it."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        body = metadata["body"]
        if metadata["format"] != FORMAT or metadata["sha256"] != _digest(body, arrays):
            raise ValueError("not what was written")
    except (SafetensorError, OSError, KeyError, ValueError):
        path.unlink(missing_ok=True)
        return None
    content = json.loads(body)
    windows = {
        name: Windows(max_length, pad_token_id, *(arrays[f"{name}.{array}"] for array in _ARRAYS))
        for name, (max_length, pad_token_id) in content["windows"].items()
    }
    return windows, content["report"]


def _digest(body: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256(body.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
