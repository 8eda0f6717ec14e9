"""Tests of what a compiled decoder layer keeps for its backward pass: torch's partitioner, without its kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aegis.config.train_settings import TrainConfig
from aegis.model.soul_hook import decoder_of
from aegis.training.execution import compile
from aegis.training.execution.activation_checkpointing import ActivationStore, Slot, saving_to
from aegis.training.execution.compile import compile_checkpointed_layer, compile_layer
from aegis.training.kernels.head_chunks import compile_once
from aegis.training.kernels.varlen_attention import install_attention
from tests.training.conftest import MakeState

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler

CONFIG = TrainConfig(lora_r=2, lora_dropout=0.3)
LENGTH = 24


def layer_and_arguments(
    make_state: MakeState, windows: int = 1, length: int = LENGTH
) -> tuple[Any, Tensor, dict[str, Any]]:
    model = make_state(CONFIG).model
    install_attention(model.get_base_model())
    decoder: Any = decoder_of(model)
    hidden = torch.randn(windows, length, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length)[None]
    arguments = {"position_ids": positions, "position_embeddings": decoder.rotary_emb(hidden, positions)}
    return decoder.layers[0], hidden, {**arguments, "attention_mask": None, "use_cache": False}


def through(layer: Any, run: Any, hidden: Tensor, arguments: dict[str, Any]) -> tuple[int, Tensor, list[Tensor]]:
    """Return the kept values that have a token dimension, and the gradients."""
    hidden = hidden.clone().requires_grad_()
    kept: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        if LENGTH in tensor.shape[:-1] and tensor.dtype.is_floating_point:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor

    layer.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        output = run(layer, hidden, **arguments)
    output.square().sum().backward()
    assert hidden.grad is not None
    return sum(kept.values()), hidden.grad, [p.grad.clone() for p in layer.parameters() if p.grad is not None]


@pytest.mark.usefixtures("partitioned")
def test_a_compiled_layer_keeps_little_and_a_checkpointed_one_its_input(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, hidden, arguments = layer_and_arguments(make_state)
    plain = type(layer).forward
    _, gradient, gradients = through(layer, plain, hidden, arguments)
    found = {}
    for name, run in (
        ("kept", compile_layer(plain)),
        ("checkpointed", compile_checkpointed_layer(plain)),
        ("attention kept", compile_checkpointed_layer(plain, keep_attention=True)),
    ):
        found[name], ours, all_ours = through(layer, run, hidden, arguments)
        torch.testing.assert_close(ours, gradient)
        torch.testing.assert_close(all_ours, gradients)
    tables = sum(table.numel() for table in arguments["position_embeddings"])
    text = layer.self_attn.config
    # on a CPU attention's result is kept in its own order as well as in the next product's
    counted = LENGTH * (7 * text.hidden_size + 2 * text.intermediate_size)
    assert found["kept"] == pytest.approx(counted + tables, rel=0.05)
    monkeypatch.setattr(compile, "_KEEP_LESS", {})
    torch._dynamo.reset()
    by_default, *_ = through(layer, compile_layer(plain), hidden, arguments)
    assert by_default > 1.1 * found["kept"]
    assert found["checkpointed"] == hidden.numel() + tables
    assert found["attention kept"] == 2 * hidden.numel() + tables


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize("windows", [1, 2])
def test_a_store_can_take_all_that_a_layer_keeps(make_state: MakeState, windows: int) -> None:
    """Flattened or not, except a few values per token of dropout and adapter; weights stay in place.

    The length equals a weight's width, so that the two could be confused.
    """
    layer, hidden, arguments = layer_and_arguments(make_state, windows, length=48)
    _, gradient, gradients = through(layer, type(layer).forward, hidden, arguments)
    compiled = compile_layer(type(layer).forward)

    class Seen(ActivationStore):
        def keeps(self, saved: Tensor) -> bool:
            is_kept = super().keeps(saved)
            (kept if is_kept else left).append(saved)
            return is_kept

    kept: list[Tensor] = []
    left: list[Tensor] = []
    layer.zero_grad()
    given = hidden.clone().requires_grad_()
    shared = [*arguments["position_embeddings"], *layer.parameters()]
    saving_to(lambda inner: compiled(layer, inner, **arguments), given, Seen(), shared).square().sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad, gradient)
    torch.testing.assert_close([p.grad for p in layer.parameters() if p.grad is not None], gradients)
    text, tokens = layer.self_attn.config, hidden.shape[0] * hidden.shape[1]
    counted = tokens * (7 * text.hidden_size + 2 * text.intermediate_size)
    assert sum(tensor.numel() for tensor in kept) == pytest.approx(counted, rel=0.05)
    weights = {parameter.data_ptr() for parameter in layer.parameters()}
    assert weights.isdisjoint(tensor.data_ptr() for tensor in kept)
    shared_places = weights | {tensor.data_ptr() for tensor in shared}
    others = [tensor for tensor in left if tensor.data_ptr() not in shared_places]
    assert sum(tensor.numel() for tensor in others) < 0.05 * counted


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize("keep_attention", [False, True])
def test_a_store_can_take_all_that_a_checkpointed_layer_keeps(make_state: MakeState, keep_attention: bool) -> None:
    """What it has of every token, once a pass, and nothing that all layers share; the layer is compiled once."""
    layer, hidden, arguments = layer_and_arguments(make_state)
    _, gradient, _ = through(layer, type(layer).forward, hidden, arguments)
    compiled = compile_checkpointed_layer(type(layer).forward, keep_attention=keep_attention)
    torch._dynamo.utils.counters.clear()

    class Seen(ActivationStore):
        def push(self, tensor: Tensor) -> Slot:
            kept.append(tensor.numel())
            return super().push(tensor)

    kept: list[int] = []
    store = Seen()
    for _ in range(2):
        given = hidden.clone().requires_grad_()
        output = saving_to(
            lambda inner: compiled(layer, inner, **arguments), given, store, arguments["position_embeddings"]
        )
        output.square().sum().backward()
        assert given.grad is not None
        torch.testing.assert_close(given.grad, gradient)
    sums = LENGTH * layer.self_attn.config.num_attention_heads  # of attention's weights, a number a token and head
    assert sorted(kept) == sorted(2 * ([hidden.numel()] * (1 + keep_attention) + [sums] * keep_attention))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_every_compilation_measures_only_variants_that_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 does not find those again that it adds while it measures; by itself it adds them."""
    from torch._inductor import compile_fx, config

    asked = []

    def stop(*_: Any, **__: Any) -> None:
        asked.append(config.dynamic_scale_rblock)
        raise KeyError

    monkeypatch.setattr(compile_fx, "fx_codegen_and_compile", stop)
    compilations: list[Any] = [
        torch.compile,
        compile_layer,
        lambda forward: compile_checkpointed_layer(lambda _, hidden: forward(hidden)),
        compile_once,
    ]
    for number, compiled in enumerate(compilations):
        torch.compiler.reset()
        run = compiled(lambda hidden: (hidden * 2).sum())
        with pytest.raises(Exception, match="KeyError"):
            run(None, torch.ones(4, requires_grad=True)) if number == 2 else run(torch.ones(4, requires_grad=True))
    assert asked == [True, False, False, False]
