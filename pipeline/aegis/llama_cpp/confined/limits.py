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
def limited_memory(memory_bytes: int | None) -> Iterator[None]:
    """Limit this process's memory while the block runs, on Linux.

    Args:
        memory_bytes: maximum memory beyond the current amount. A larger allocation fails before the memory is used: a
            template may multiply a string by a billion in one instruction.
    """
    if memory_bytes is None or not HAS_MEMORY_LIMIT:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # data and stacks, as the limit counts them; reserved address space does not count
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    limit = pages * resource.getpagesize() + memory_bytes
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limit_processor_time(seconds: float | None) -> None:
    """Let the system end this process after this processor time per core, from now on; None removes the limit.

    The process that waits for it ends it much earlier, unless it was killed itself.
    """
    if sys.platform == "win32":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = hard
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 1
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


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
