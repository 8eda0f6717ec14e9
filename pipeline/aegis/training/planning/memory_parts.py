"""What the memory of a training step is made of, in bytes by part."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the peak of a step."""

    weights: int
    adapter: int
    soul: int
    gradients: int
    optimizer: int
    activations: int
    head_and_loss: int
    workspace: int

    @property
    def peak(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class ShardedWeights:
    """Bytes that one of several processes holds of the base; their sum is the weights of the estimate.

    Attributes:
        shard: its share of every decoder layer's matrices; if it waits in host memory, the copies for two layers.
        gathered_layers: the complete layers that it holds at a time, while they run or are gathered.
        replicated: norms, biases, LM head, NF4's scales, embeddings on the GPU; every process has them.
    """

    shard: int
    gathered_layers: int
    replicated: int
