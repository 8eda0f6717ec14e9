"""Recomputation gives the gradients of the plain way, keeps only inputs, and leaves nothing behind.

Offloading to pinned memory and its streams need a GPU: test_gpu.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aegis.training.recompute import Keeper, recomputed


def layers() -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3)]


def through(stack: list[nn.Sequential], hidden: Tensor, keeper: Keeper | None, many: int = 3) -> Tensor:
    for number, layer in enumerate(stack):
        hidden = recomputed(layer, hidden, keeper) if keeper is not None and number < many else layer(hidden)
    return hidden


@pytest.mark.parametrize("many", [1, 2, 3])
def test_gradients_are_the_plain_ones(many: int) -> None:
    """All layers recomputed or only the first ones; another input misses."""
    hidden = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    plain, ours, other = layers(), layers(), layers()
    through(plain, hidden, None).square().sum().backward()
    keeper = Keeper()
    for _ in range(2):  # the same keeper serves every pass
        for parameter in (p for layer in ours for p in layer.parameters()):
            parameter.grad = None
        through(ours, hidden, keeper, many).square().sum().backward()
    through(other, hidden + 0.1, keeper, many).square().sum().backward()
    for one, two, three in zip(plain, ours, other, strict=True):
        for wanted, found, missed in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
            assert torch.equal(wanted.grad, found.grad)
            assert not torch.allclose(wanted.grad, missed.grad)


def test_an_input_without_gradient_does_not_stop_it() -> None:
    """The embeddings' output needs none; the first layer's parameters get theirs all the same."""
    (layer,) = layers()[:1]
    recomputed(layer, torch.randn(2, 8), Keeper()).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_only_the_input_is_kept() -> None:
    saved: list[Tensor] = []
    hidden = torch.randn(4, 8, requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = through(layers(), hidden, Keeper())
    assert saved == []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        through(layers(), hidden, None)
    assert saved
    output.sum().backward()
    assert hidden.grad is not None


def test_layers_come_back_in_reverse_or_not_at_all() -> None:
    keeper = Keeper()
    places = []
    for number in range(2):
        keeper.begin()
        places.append([keeper.keep(torch.full((1,), 10.0 * number + own)) for own in range(2)])
    with pytest.raises(AssertionError, match="in reverse"):
        keeper.take(places[0][0])
    assert [keeper.take(place).item() for place in reversed(places[1])] == [11, 10]
    assert keeper.take(places[0][0]).item() == 0
    with pytest.raises(AssertionError, match="once"):
        keeper.take(places[0][0])
