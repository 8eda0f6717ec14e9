"""Tests that checkpointing gives the plain gradients, keeps only inputs and leaves no hook behind.

Whether the GPU waits for copies to and from pinned memory needs a GPU: test_gpu.py. Their order is tested here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aegis.errors import EnvironmentFault
from aegis.training.execution.activation_checkpointing import ActivationStore, Slot, checkpointed, saving_to
from aegis.training.execution.offloading import HostActivationStore
from aegis.training.execution.options import IN_FLIGHT, is_offloaded

CPU = torch.device("cpu")


def layers() -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3)]


def forward(stack: list[nn.Sequential], hidden: Tensor, store: ActivationStore | None, count: int = 3) -> Tensor:
    """Return the output of all layers, of which the first `count` are checkpointed."""
    for number, layer in enumerate(stack):
        hidden = checkpointed(layer, hidden, store) if store is not None and number < count else layer(hidden)
    return hidden


@pytest.mark.parametrize("count", [1, 2, 3])
def test_checkpointed_layers_give_the_plain_gradients(count: int) -> None:
    """Whether all layers are checkpointed or only the first; another input misses."""
    hidden = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    plain, ours, other = layers(), layers(), layers()
    forward(plain, hidden, None).square().sum().backward()
    store = ActivationStore()
    for _ in range(2):  # the same store serves every pass
        for parameter in (p for layer in ours for p in layer.parameters()):
            parameter.grad = None
        forward(ours, hidden, store, count).square().sum().backward()
    forward(other, hidden + 0.1, store, count).square().sum().backward()
    for one, two, three in zip(plain, ours, other, strict=True):
        for wanted, found, missed in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
            assert torch.equal(wanted.grad, found.grad)
            assert not torch.allclose(wanted.grad, missed.grad)


def test_a_layer_whose_input_needs_no_gradient_still_gets_its_parameters_gradients() -> None:
    """The embeddings' output needs none; the first layer's parameters do."""
    (layer,) = layers()[:1]
    checkpointed(layer, torch.randn(2, 8), ActivationStore()).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_autograd_saves_nothing_of_checkpointed_layers() -> None:
    saved: list[Tensor] = []
    hidden = torch.randn(4, 8, requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward(layers(), hidden, ActivationStore())
    assert saved == []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(layers(), hidden, None)
    assert saved
    output.sum().backward()
    assert hidden.grad is not None


def test_a_store_refuses_to_pop_layers_in_another_order_or_twice() -> None:
    store = ActivationStore()
    slots = []
    for number in range(2):
        store.begin()
        slots.append([store.push(torch.full((1,), 10.0 * number + own)) for own in range(2)])
    with pytest.raises(AssertionError, match="in reverse"):
        store.pop(slots[0][0])
    assert [store.pop(slot).item() for slot in reversed(slots[1])] == [11, 10]
    assert store.pop(slots[0][0]).item() == 0
    with pytest.raises(AssertionError, match="once"):
        store.pop(slots[0][0])


class Stream:
    """A stream or an event of a stand-in GPU, whose work is done at once."""

    def record(self) -> None: ...

    def wait_stream(self, _: Stream) -> None: ...

    def wait_event(self, _: object) -> None: ...


class Watched(HostActivationStore):
    """Records every event with the layers that have tensors on the GPU then: before a pop, after the other events."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.events: list[tuple[str, set[int]]] = []
        self.layers = 0

    @property
    def resident_layers(self) -> set[int]:
        """The layers with kept tensors on the GPU now: being copied out, or back again."""
        return {layer for layer, *_ in self._copies_to_host} | self._copies_to_gpu.keys()

    def start(self) -> None:
        super().start()
        self.layers = 0

    def note(self, event: str) -> None:
        self.events.append((event, self.resident_layers))

    def begin(self) -> None:
        super().begin()
        self.note(f"begin {self.layers}")
        self.layers += 1

    def drain(self, hidden: Tensor) -> None:
        super().drain(hidden)
        self.note("drain")

    def push(self, tensor: Tensor) -> Slot:
        slot = super().push(tensor)
        self.note(f"push {slot.layer}")
        return slot

    def pop(self, slot: Slot) -> Tensor:
        self.note(f"pop {slot.layer}")
        return super().pop(slot)

    def layers_of(self, kind: str) -> list[int]:
        """Return the layers of all events of a kind, in order, without repetitions."""
        return list(dict.fromkeys(int(event.split()[1]) for event, _ in self.events if event.startswith(kind)))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Stand in for a GPU; return a function that makes the next pinning fail."""
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
        "Event": Stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return failing.append


def offloading(stack: list[nn.Sequential], hidden: Tensor, store: ActivationStore, offloaded: int) -> Tensor:
    """Return the output of all layers as `execution.apply_options` runs them, without the compiler."""
    store.start()
    for number, layer in enumerate(stack):
        if number == len(stack) - 1:
            store.drain(hidden)
        if is_offloaded(number, len(stack), offloaded):
            hidden = saving_to(layer, hidden, store, layer.parameters())
        else:
            hidden = layer(hidden)
    return hidden


@pytest.mark.usefixtures("gpu")
def test_layers_that_are_replaced_by_others_keep_other_tensors_in_the_same_store() -> None:
    """As in a finish: wider ones, and then ones that keep fewer tensors, twice each."""
    hidden = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    wide = [nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)) for _ in "123"]
    store = HostActivationStore(CPU)
    for stack in (layers(), layers(), wide, wide, [nn.Sequential(nn.Linear(8, 8)) for _ in "123"], layers()):
        gradients = []
        for run in (lambda s: forward(s, hidden, None), lambda s: offloading(s, hidden, store, 2)):
            parameters = [hidden, *(parameter for layer in stack for parameter in layer.parameters())]
            gradients.append(torch.autograd.grad(run(stack).square().sum(), parameters))
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("offloaded", [1, 2, 3, 4, 5])
def test_offloaded_layers_leave_and_come_back_before_they_are_used(offloaded: int) -> None:
    """The gradients are equal to the bit, twice; at most two offloaded layers are on the GPU at a time."""
    hidden = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    plain, ours = [*layers(), *layers()], [*layers(), *layers()]
    forward(plain, hidden, None).square().sum().backward()
    store = Watched()
    for _ in range(2):
        store.events, hidden.grad = [], None
        for parameter in (p for layer in ours for p in layer.parameters()):
            parameter.grad = None
        output = offloading(ours, hidden, store, offloaded)
        output.register_hook(lambda _: store.note("gradient"))
        output.square().sum().backward()
        assert store.layers_of("begin") == list(range(offloaded))
        assert store.layers_of("pop") == list(reversed(range(offloaded)))
        names = [event for event, _ in store.events]
        # nothing is on the GPU when the last layer begins, nor when the gradient of its output arrives
        assert names.index("drain") < names.index("gradient") < names.index(f"pop {offloaded - 1}")
        assert dict(store.events)["drain"] == dict(store.events)["gradient"] == set()
        for event, resident in store.events:
            if event.startswith("pop"):  # its copy back began before this pop, which only waits for it
                assert int(event.split()[1]) in resident
    assert max(len(resident) for _, resident in store.events) == min(offloaded, IN_FLIGHT)
    for one, two in zip(plain, ours, strict=True):
        for wanted, found in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(wanted.grad, found.grad)


@pytest.mark.usefixtures("gpu")
def test_a_store_forgets_a_pass_that_did_not_end() -> None:
    """As when a step cannot be recorded: the next pass begins with layer 0 again, in the same buffers."""
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    stack, store = layers(), Watched()
    store.start()
    saving_to(stack[0], hidden, store, [])
    offloading(stack, hidden, store, 2)
    store.start()
    assert not store.resident_layers
    store.events = []
    offloading(stack, hidden, store, 2).sum().backward()
    assert (store.layers_of("begin"), store.layers_of("pop")) == ([0, 1], [1, 0])
    assert not store.resident_layers


@pytest.mark.parametrize("run", ["checkpointed", "offloaded"])
def test_a_host_without_memory_is_reported_with_what_to_do(gpu: Callable[[Exception], None], run: str) -> None:
    """The first step pins its buffers; an error of another kind is raised unchanged."""
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    (layer,) = layers()[:1]

    def step() -> Tensor:
        if run == "checkpointed":
            return checkpointed(layer, hidden, HostActivationStore(CPU))
        return saving_to(layer, hidden, HostActivationStore(CPU), layer.parameters())

    step()
    gpu(RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"))
    with pytest.raises(EnvironmentFault) as caught:
        step()
    assert caught.value.args[0] == "train.not_pinned"
    assert "CUDA error: out of memory" in caught.value.why
    assert "Search" not in caught.value.why
    gpu(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        step()
