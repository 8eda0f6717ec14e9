"""A step as CUDA graphs: recorded once, then launched as a whole, since launching its kernels one by one from Python
takes longer than running them (a 512-token step of a 3.8 B model: 4,000 kernels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of its own for the block, on a GPU: a graph cannot be recorded on the default one.

    It waits for what was launched before the block, and what comes after it waits for the block.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


class GraphRecorder:
    """Records functions on the current stream; what they were given must stay where it is, since a replay reads it.

    The graphs share one pool of memory, so they must be replayed in the order they were recorded in; one may be
    replayed several times in its place.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        """Record what `function` launches, without running it; returns the replay.

        Raises:
            RuntimeError: it cannot be recorded, since it waits for the GPU, say. What runs afterwards is not disturbed.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may use CUDA meanwhile (pinning memory, say) without spoiling the recording
            with torch.cuda.graph(
                graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
            ):
                function()
        except RuntimeError:
            _renew_generator()
            raise
        return graph.replay


def _renew_generator() -> None:
    """Give the GPU's random generator a new state: the old one believes for good that it is being recorded."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    renewed = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(renewed.graphsafe_get_state())
