"""Tests that each process has its shard of a base, and that all shards give the base byte for byte.

tests/stages/test_train_distributed.py trains with it in two processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from aegis.config.train_settings import TrainConfig
from aegis.model.load import Precision, footprint, load_base
from aegis.training.adapter_and_soul import assemble
from aegis.training.distributed.sharded_base import is_sharded, shard_base
from aegis.training.planning.estimate import MemoryEstimator
from tests.conftest import MakeRandom

CPU = torch.device("cpu")


@contextmanager
def process(rank: int, world_size: int) -> Iterator[None]:
    """Be one of several processes, of which no other exists: nothing can be gathered."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["4bit", "16bit"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shards_of_all_processes_are_the_base(
    make_random: MakeRandom, world_size: int, precision: Precision
) -> None:
    """A process holds what plan estimates, and a third process does not hold what the second one holds."""
    base = make_random("phi3", num_hidden_layers=2, num_key_value_heads=4)
    config = TrainConfig(base_model=str(base), load_in=precision)
    estimator = MemoryEstimator(base, config, "cpu")
    held = estimator.sharded_weights(world_size)
    complete = load_base(base, precision, CPU)
    wanted = {name: bytes_of(p) for name, p in complete.model.layers.named_parameters() if is_sharded(p)}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    for rank in range(world_size):
        with process(rank, world_size):
            model = copy.deepcopy(complete)

            def place(peft_model: Any) -> None:
                shard_base(peft_model, CPU, world_size, world_size)

            assemble(model, config, CPU, torch.float32, place=place)
            adapter = sum(p.nbytes for p in model.parameters() if p.requires_grad)
            assert footprint(model) - adapter == held.shard + held.replicated < footprint(complete)
            for name, parameter in model.model.layers.named_parameters():
                if isinstance(parameter, DTensor):
                    found[name.replace(".base_layer", "")].append(bytes_of(parameter.to_local()))
    assert all(torch.equal(torch.cat(shards), wanted[name]) for name, shards in found.items())
    assert not any(torch.equal(shards[0], shards[1]) for shards in found.values())


def test_neighbours_hold_a_base_together(make_random: MakeRandom) -> None:
    """Four processes hold two bases, two processes each: the third has what the first has."""
    base = make_random("phi3", num_hidden_layers=2, num_key_value_heads=4)
    config = TrainConfig(base_model=str(base), shard_base=True, shard_processes=2)
    complete, held = load_base(base, "4bit", CPU), []
    for rank in range(4):
        with process(rank, 4):
            model = copy.deepcopy(complete)
            assemble(model, config, CPU, torch.float32, place=lambda peft_model: shard_base(peft_model, CPU, 4, 2))
            held.append(bytes_of(model.model.layers[0].mlp.down_proj.weight.to_local()))
    assert torch.equal(held[0], held[2])
    assert torch.equal(held[1], held[3])
    assert torch.equal(torch.cat(held[:2]), bytes_of(complete.model.layers[0].mlp.down_proj.weight))


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)
