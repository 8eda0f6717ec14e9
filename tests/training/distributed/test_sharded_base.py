"""Of a base that is split each process keeps its part, and all parts together are the base, to the byte."""

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


@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_are_the_whole(make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Each holds its share and two layers; what the others hold comes, and every matrix is what it was."""
    base = make_random("phi3", num_hidden_layers=3, num_key_value_heads=4)
    whole = load_base(base, "4bit", CPU)
    models = [copy.deepcopy(whole) for _ in range(parts)]
    splits = [ShardedBase(model.model.layers, rank, parts, CPU) for rank, model in enumerate(models)]
    matrices = sum(p.nbytes for p in whole.model.layers.parameters() if p.ndim > 1)
    rounding = 2 * 256 * 7 * 3
    held = MemoryEstimator(base, TrainConfig(base_model=str(base)), "cpu").held(parts)
    for model, split in zip(models, splits, strict=True):
        assert abs(footprint(whole) - footprint(model) - matrices * (parts - 1) / parts) < rounding
        assert footprint(model) == held.part + held.whole
        assert sum(room.memory.nbytes for room in split._rooms) == held.layers

    def gathered(into: torch.Tensor, part: torch.Tensor, async_op: bool) -> None:
        assert async_op
        number = next(n for n, layer in enumerate(models[0].model.layers) if layer.aegis_part is part)
        into.copy_(torch.cat([model.model.layers[number].aegis_part for model in models]))

    # in one process nobody else is there to send anything
    monkeypatch.setattr("aegis.training.distributed.sharded_base.dist.all_gather_into_tensor", gathered)
    forwards, backwards = [0, 1, 2], [2, 1, 0]
    for gradients, order in ((False, forwards), (True, backwards), (False, forwards), (False, forwards)):
        for number in order:
            with torch.set_grad_enabled(gradients):
                splits[0].gather(number)
            ours, theirs = models[0].model.layers[number], whole.model.layers[number]
            for (name, found), (_, wanted) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
                assert found.dtype == wanted.dtype
                assert torch.equal(found.data, wanted.data), (number, name)
        # a layer whose place another one took is no layer, rather than the other one
        places = [layer.self_attn.o_proj.weight.numel() > 0 for layer in models[0].model.layers]
        assert sum(places) == 2, places
