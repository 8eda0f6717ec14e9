"""Limits that the operating system enforces: memory, on Linux, and processor time, on every system but Windows."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HAS_MEMORY_LIMIT = sys.platform.startswith("linux")


@contextmanager
def limited(memory_bytes: int | None, seconds: float | None) -> Iterator[None]:
    """Limit this process while the block runs.

    Args:
        memory_bytes: maximum memory beyond the current amount. A larger allocation fails before the memory is used: a
            template may multiply a string by a billion in one instruction.
        seconds: processor time per core, after which the system ends this process. The process that waits for it ends
            it much earlier, unless it was killed itself.
    """
    if sys.platform == "win32":
        yield
        return
    import resource

    before = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_DATA, resource.RLIMIT_CPU)}
    try:
        if memory_bytes is not None and HAS_MEMORY_LIMIT:
            # data and stacks, as the limit counts them; reserved address space does not count
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
            _lower(resource.RLIMIT_DATA, pages * resource.getpagesize() + memory_bytes)
        if seconds is not None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            spent = used.ru_utime + used.ru_stime
            _lower(resource.RLIMIT_CPU, math.ceil(spent + seconds * (os.cpu_count() or 1)) + 1)
        yield
    finally:
        for kind, limits in before.items():
            resource.setrlimit(kind, limits)


def private_bytes(pid: int) -> int:
    """Return the bytes of a process's memory without mapped files, such as a model's weights; 0 if it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        found = process.memory_info()
        if sys.platform == "darwin":
            return int(process.memory_full_info().uss)
        return int(found.private if sys.platform == "win32" else found.rss - found.shared)
    except psutil.Error:
        return 0


def forget_inherited_limits() -> None:
    """Remove the limit on processor time inherited from a confined process that started this one."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _lower(kind: int, limit: int) -> None:
    import resource

    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
