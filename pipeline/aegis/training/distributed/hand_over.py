"""Hands process 0's checkpoint to processes on other machines, which do not have it on their disks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from aegis.errors import IntegrityError
from aegis.runs.manifest import file_sha256, verify_directory
from aegis.training.distributed.group import ProcessGroup

_CHUNK_BYTES = 1 << 26


@contextmanager
def handed_over(group: ProcessGroup, checkpoint: Path) -> Iterator[Path]:
    """Yield a directory with the files of process 0's `checkpoint`, in all processes; all of them call this.

    If every process has the same files under this path, that is the directory; else the others get a temporary copy.

    Raises:
        IntegrityError: process 0's checkpoint is damaged, or a file has not arrived as it was sent.
        SystemExit, PeerEnded: as in `ProcessGroup.broadcast`.
    """
    if group.world_size == 1:
        verify_directory(checkpoint)
        yield checkpoint
        return
    hashes = group.broadcast(lambda: {name: file.sha256 for name, file in verify_directory(checkpoint).files.items()})
    missing = torch.tensor([0.0 if _holds(checkpoint, hashes) else 1.0])
    group.all_reduce(missing)
    if not missing.item():
        yield checkpoint
        return
    with TemporaryDirectory(prefix="aegis-checkpoint-") as folder:
        received = checkpoint if group.is_main else Path(folder)
        for name in hashes:
            _send(group, received / name)
        if not _holds(received, hashes):
            raise IntegrityError("distributed.not_handed_over", checkpoint=checkpoint)
        yield received


def _holds(folder: Path, hashes: dict[str, str]) -> bool:
    return all((folder / name).is_file() and file_sha256(folder / name) == hashes[name] for name in hashes)


def _send(group: ProcessGroup, path: Path) -> None:
    """Send process 0's file in chunks; the other processes write theirs."""
    left = group.broadcast(lambda: path.stat().st_size)
    buffer = bytearray(max(1, min(left, _CHUNK_BYTES)))
    shared = torch.frombuffer(buffer, dtype=torch.uint8)
    with path.open("rb" if group.is_main else "wb") as file:
        while left:
            size = min(left, _CHUNK_BYTES)
            if group.is_main:
                buffer[:size] = file.read(size)
            group.broadcast_tensor(shared[:size])
            if not group.is_main:
                file.write(memoryview(buffer)[:size])
            left -= size
