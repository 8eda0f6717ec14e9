"""A step as CUDA graphs: recorded once, then launched as a whole, since launching its kernels one by one from Python
takes longer than running them (a 512-token step of a 3.8 B model: 4,000 kernels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class Recorder:
    """Records functions on the current stream; what they were given must stay where it is, since a replay reads it.

    The graphs share one pool of memory, so they must be replayed in the order they were recorded in; one may be
    replayed several times in its place.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        """Record what `function` launches, without running it; returns the replay."""
        graph = torch.cuda.CUDAGraph()
        # other threads may use CUDA meanwhile (pinning memory, say) without spoiling the recording
        with torch.cuda.graph(
            graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            function()
        return graph.replay
