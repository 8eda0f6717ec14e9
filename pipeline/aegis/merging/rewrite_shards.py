"""Makes all shards of the merged model, two at a time where there are cores for it.

A file's sha256 is the work of one core, and with many cores it is what takes a shard's time: about a second per GB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import torch

from aegis.background import stop_if_asked, two_at_a_time
from aegis.merging.merged_weights import MergePlan
from aegis.merging.rewrite_shard import RewrittenShard, rewrite_shard
from aegis.runs import known_hashes

_CORES = 4
"""From so many on, two shards at once are quicker than one after the other."""


def rewrite_shards(
    plan: MergePlan, folder: Path, advance: Callable[[int], None]
) -> Generator[RewrittenShard, None, None]:
    """Write the merged shards into `folder`, in the base's order. Close the iterator to stop early.

    Args:
        advance: called with the number of bytes that were written, from more than one thread.

    Raises:
        IntegrityError: as in `rewrite_shard`.
    """
    stop = threading.Event()

    def count(written: int) -> None:
        stop_if_asked(stop)
        advance(written)

    shards = [partial(_rewritten, plan, file, folder / file.name, count) for file in plan.base.shards.files]
    # two round trips through NF4 would wait for each other at the interpreter's lock
    if (os.cpu_count() or 1) < _CORES or plan.round_trip is not None:
        yield from (rewrite() for rewrite in shards)
        return
    threads = torch.get_num_threads()
    try:
        yield from two_at_a_time(shards, stop)
    finally:
        torch.set_num_threads(threads)  # each shard's threads have set it, and do not end in the order of their start


def _rewritten(plan: MergePlan, file: Path, target: Path, advance: Callable[[int], None]) -> RewrittenShard:
    known = known_hashes.noted(file, "sha256")
    return rewrite_shard(plan, file, target, advance, None if known is None else bytes.fromhex(known))
