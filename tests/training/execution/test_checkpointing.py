"""Recomputation gives the gradients of the plain way, keeps only inputs, and leaves nothing behind.

That copies to pinned memory and back are waited for needs a GPU: test_gpu.py. Their order does not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aegis.errors import EnvironmentFault
from aegis.training.execution.checkpointing import ActivationStore, HostActivationStore, Slot, checkpointed, saving_to
from aegis.training.execution.options import IN_FLIGHT, is_offloaded


def layers() -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3)]


def through(stack: list[nn.Sequential], hidden: Tensor, store: ActivationStore | None, many: int = 3) -> Tensor:
    for number, layer in enumerate(stack):
        hidden = checkpointed(layer, hidden, store) if store is not None and number < many else layer(hidden)
    return hidden


@pytest.mark.parametrize("many", [1, 2, 3])
def test_gradients_are_the_plain_ones(many: int) -> None:
    """All layers recomputed or only the first ones; another input misses."""
    hidden = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    plain, ours, other = layers(), layers(), layers()
    through(plain, hidden, None).square().sum().backward()
    store = ActivationStore()
    for _ in range(2):  # the same keeper serves every pass
        for parameter in (p for layer in ours for p in layer.parameters()):
            parameter.grad = None
        through(ours, hidden, store, many).square().sum().backward()
    through(other, hidden + 0.1, store, many).square().sum().backward()
    for one, two, three in zip(plain, ours, other, strict=True):
        for wanted, found, missed in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
            assert torch.equal(wanted.grad, found.grad)
            assert not torch.allclose(wanted.grad, missed.grad)


def test_an_input_without_gradient_does_not_stop_it() -> None:
    """The embeddings' output needs none; the first layer's parameters get theirs all the same."""
    (layer,) = layers()[:1]
    checkpointed(layer, torch.randn(2, 8), ActivationStore()).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_only_the_input_is_kept() -> None:
    saved: list[Tensor] = []
    hidden = torch.randn(4, 8, requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = through(layers(), hidden, ActivationStore())
    assert saved == []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        through(layers(), hidden, None)
    assert saved
    output.sum().backward()
    assert hidden.grad is not None


def test_layers_come_back_in_reverse_or_not_at_all() -> None:
    store = ActivationStore()
    places = []
    for number in range(2):
        store.begin()
        places.append([store.push(torch.full((1,), 10.0 * number + own)) for own in range(2)])
    with pytest.raises(AssertionError, match="in reverse"):
        store.pop(places[0][0])
    assert [store.pop(place).item() for place in reversed(places[1])] == [11, 10]
    assert store.pop(places[0][0]).item() == 0
    with pytest.raises(AssertionError, match="once"):
        store.pop(places[0][0])


class Stream:
    """Of a GPU that is not here, or an event on it: what it is given to do is done at once."""

    def record(self) -> None: ...

    def wait_stream(self, _: Stream) -> None: ...

    def wait_event(self, _: object) -> None: ...


class Watched(HostActivationStore):
    """Tells what leaves, what comes back, and how many layers are on the GPU besides."""

    def __init__(self) -> None:
        super().__init__()
        self._device = torch.device("cpu")
        self.told: list[str] = []
        self.most = 0

    def begin(self) -> None:
        super().begin()
        self.told.append(f"begin {self._layer}")

    def drain(self, hidden: Tensor) -> None:
        super().drain(hidden)
        assert not self._leaving
        self.told.append("rest")

    def push(self, tensor: Tensor) -> Slot:
        place = super().push(tensor)
        self._count()
        return place

    def pop(self, place: Slot) -> Tensor:
        tensor = super().pop(place)
        if self.told[-1] != f"take {place.layer}":
            self.told.append(f"take {place.layer}")
        self._count()
        return tensor

    def _fetch(self, layer: int) -> None:
        super()._fetch(layer)
        self.told.append(f"fetch {layer}")
        self._count()

    def _count(self) -> None:
        self.most = max(self.most, len({layer for layer, *_ in self._leaving} | self._coming.keys()))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Stands in for one; returns what makes the next pinning fail."""
    empty_like, failing = torch.empty_like, []

    def pinned(tensor: Tensor, *, device: Any, pin_memory: bool = False) -> Tensor:
        if pin_memory and failing:
            raise failing.pop()
        return empty_like(tensor, device=device)

    monkeypatch.setattr(torch, "empty_like", pinned)
    for name, stand_in in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": nullcontext,
        "current_device": lambda: 0,
        "Event": Stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return failing.append


def parking(stack: list[nn.Sequential], hidden: Tensor, store: ActivationStore, parked: int) -> Tensor:
    """As `Acceleration` has it, without the compiler."""
    for number, layer in enumerate(stack):
        if number == len(stack) - 1:
            store.drain(hidden)
        if is_offloaded(number, len(stack), parked):
            hidden = saving_to(layer, hidden, store, layer.parameters())
        else:
            hidden = layer(hidden)
    return hidden


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("parked", [1, 2, 3, 4, 5])
def test_parked_layers_leave_and_come_back_ahead_of_their_use(parked: int) -> None:
    """Whatever lies between them: gradients to the bit, twice; two layers at most besides those that stay."""
    hidden = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    plain, ours = [*layers(), *layers()], [*layers(), *layers()]
    through(plain, hidden, None).square().sum().backward()
    store = Watched()
    for _ in range(2):
        store.told, hidden.grad = [], None
        for parameter in (p for layer in ours for p in layer.parameters()):
            parameter.grad = None
        output = parking(ours, hidden, store, parked)
        output.register_hook(lambda _: store.told.append("gradient"))
        output.square().sum().backward()
        last = parked - 1
        begun = [f"begin {number}" for number in range(parked)]
        # the last layer has let go of what it keeps before the first comes back
        assert store.told[: parked + 3] == [*begun, "rest", "gradient", f"fetch {last}"]
        rest = store.told[parked + 3 :]
        assert [what for what in rest if "take" in what] == [f"take {n}" for n in range(last, -1, -1)]
        for number in range(last):  # on its way before the one above it is worked on
            assert rest.index(f"fetch {number}") < rest.index(f"take {number + 1}")
        assert sum("fetch" in what for what in rest) == last
    assert store.most == min(parked, IN_FLIGHT)
    for one, two in zip(plain, ours, strict=True):
        for wanted, found in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(wanted.grad, found.grad)


@pytest.mark.usefixtures("gpu")
def test_a_pass_that_came_to_no_end_is_forgotten() -> None:
    """As when a step cannot be recorded: the next one's layers are the first again, in the same buffers."""
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    stack, store = layers(), Watched()
    saving_to(stack[0], hidden, store, [])
    parking(stack, hidden, store, 2)
    store.start()
    assert not store._leaving
    store.told = []
    parking(stack, hidden, store, 2).sum().backward()
    assert store.told[:4] == ["begin 0", "begin 1", "rest", "fetch 1"]
    assert store.told[-2:] == ["take 1", "take 0"]
    assert not store._coming


@pytest.mark.parametrize("run", ["recomputed", "parked"])
def test_a_host_without_room_is_told_with_what_to_do(gpu: Callable[[Exception], None], run: str) -> None:
    """Where a first step pins its buffers; an error that is none of memory stays what it is."""
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    (layer,) = layers()[:1]

    def step() -> Tensor:
        if run == "recomputed":
            return checkpointed(layer, hidden, Watched())
        return saving_to(layer, hidden, Watched(), layer.parameters())

    step()
    gpu(RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"))
    with pytest.raises(EnvironmentFault) as caught:
        step()
    assert "CUDA error: out of memory" in caught.value.why
    assert "Search" not in caught.value.why
    assert "--activation-checkpointing off" in caught.value.fix
    gpu(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        step()
