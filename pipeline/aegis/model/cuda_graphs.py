"""A step as CUDA graphs: recorded once, then launched in one call.

Launching the kernels one by one from Python takes longer than running them: a 512-token step of a 3.8 B model has 4,000
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the block on a separate stream, on a GPU: a graph cannot be recorded on the default stream.

    The block waits for what was launched before it, and what is launched after it waits for the block.
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
    """Records functions on the current stream. Their inputs must keep their addresses, because a replay reads them.

    The graphs share one pool of memory, so they must be replayed in the order of recording; each may be replayed
    several times in its turn.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], object]) -> Callable[[], None]:
        """Record what `function` launches without running it; return the function that replays it.

        Raises:
            RuntimeError: it cannot be recorded, for example because it waits for the GPU. Later work is not affected.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may use CUDA meanwhile (to pin memory, for example) without spoiling the recording
            with torch.cuda.graph(
                graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
            ):
                function()
        except RuntimeError:
            _renew_generator()
            raise
        return graph.replay


def _renew_generator() -> None:
    """Give the GPU's random generator a new state: the old one stays in recording mode for ever."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    renewed = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(renewed.graphsafe_get_state())
