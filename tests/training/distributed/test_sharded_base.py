"""Tests that each process has its shard of a base, and that all shards give the base byte for byte."""

from __future__ import annotations

import copy

import pytest
import torch

from aegis.config.settings import TrainConfig
from aegis.model.load import footprint, load_base
from aegis.training.distributed.sharded_base import ShardedBase
from aegis.training.planning.estimate import MemoryEstimator
from tests.conftest import MakeRandom

CPU = torch.device("cpu")


@pytest.mark.parametrize("world_size", [2, 3])
def test_gathered_layers_equal_the_complete_base(
    make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """Each process holds its shards and two layers; gathering the other shards restores every matrix."""
    base = make_random("phi3", num_hidden_layers=3, num_key_value_heads=4)
    complete = load_base(base, "4bit", CPU)
    models = [copy.deepcopy(complete) for _ in range(world_size)]
    sharded = [ShardedBase(model.model.layers, rank, world_size, CPU) for rank, model in enumerate(models)]
    matrices = sum(p.nbytes for p in complete.model.layers.parameters() if p.ndim > 1)
    rounding = 2 * 256 * 7 * 3
    held = MemoryEstimator(base, TrainConfig(base_model=str(base)), "cpu").sharded_weights(world_size)
    for model, shards in zip(models, sharded, strict=True):
        assert abs(footprint(complete) - footprint(model) - matrices * (world_size - 1) / world_size) < rounding
        assert footprint(model) == held.shard + held.replicated
        assert shards.buffer_bytes == held.gathered_layers

    def all_gather(into: torch.Tensor, shard: torch.Tensor, async_op: bool) -> None:
        assert async_op
        number = next(n for n, layer in enumerate(models[0].model.layers) if layer.aegis_shard is shard)
        into.copy_(torch.cat([model.model.layers[number].aegis_shard for model in models]))

    # the test is one process: no other process can send its shards
    monkeypatch.setattr("aegis.training.distributed.sharded_base.dist.all_gather_into_tensor", all_gather)
    forwards, backwards = [0, 1, 2], [2, 1, 0]
    for gradients, order in ((False, forwards), (True, backwards), (False, forwards), (False, forwards)):
        for number in order:
            with torch.set_grad_enabled(gradients):
                sharded[0].gather(number)
            ours, theirs = models[0].model.layers[number], complete.model.layers[number]
            for (name, found), (_, wanted) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
                assert found.dtype == wanted.dtype
                assert torch.equal(found.data, wanted.data), (number, name)
        # a layer whose buffer went to another one is empty; it does not hold the other one's weights
        is_gathered = [layer.self_attn.o_proj.weight.numel() > 0 for layer in models[0].model.layers]
        assert sum(is_gathered) == 2, is_gathered
