"""Several processes, one training: who they are, and the sums they share.

The processes are started by torchrun or accelerate, which set RANK, WORLD_SIZE and LOCAL_RANK. Each takes its part of
every step's windows; gradients are added up, so that all of them make the same update.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Together:
    """`parts` processes, of which this is number `rank`."""

    rank: int = 0
    parts: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and speaks to people."""
        return self.rank == 0

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.parts > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)


ALONE = Together()
