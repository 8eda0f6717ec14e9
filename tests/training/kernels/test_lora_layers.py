"""Tests of the adapter's layers in training: peft's values and gradients under peft's names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aegis.model.lora_targets import attach_lora, resolve_targets
from aegis.training.kernels.dropout import drop
from aegis.training.kernels.lora_layers import LoraLayers

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
IDS = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def model(dropout: float = 0.0) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)).requires_grad_(False)
        wrapped = attach_lora(
            base, resolve_targets(base), rank=4, alpha=12, dropout=dropout, base_name="x", revision=None
        )
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1)
    return wrapped.train()


def gradients(wrapped: Any) -> dict[str, torch.Tensor]:
    wrapped(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad}


def test_without_dropout_the_layers_compute_what_peft_computes() -> None:
    """Loss and every gradient equal peft's to rounding; with another scale they miss."""
    ours, theirs = model(), model()
    LoraLayers(ours, torch.float32, 0.0)
    assert torch.allclose(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, atol=1e-6)
    found, wanted = gradients(ours), gradients(theirs)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-7), name
        assert not torch.allclose(found[name], 2 * gradient, rtol=1e-4, atol=1e-7), name


def test_names_and_saved_files_stay_pefts() -> None:
    from peft import get_peft_model_state_dict

    ours, theirs = model(), model()
    before = get_peft_model_state_dict(theirs, save_embedding_layers=False)
    LoraLayers(ours, torch.float32, 0.1)
    after = get_peft_model_state_dict(ours, save_embedding_layers=False)
    assert after.keys() == before.keys()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_gradients_through_dropout_are_those_of_the_written_out_formula() -> None:
    """One layer against plain autograd over W x + s·B A drop(x) with the same mask; another layer's mask misses."""
    wrapped = model()
    adapters = LoraLayers(wrapped, torch.float32, 0.5)
    adapters.set_seeds(range(100, 100 + len(adapters)))
    layer = wrapped.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(5, 32, requires_grad=True)
    layer(x).square().sum().backward()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    found = [x.grad.clone(), a.grad.clone(), b.grad.clone()]

    def written_out(seed: torch.Tensor) -> list[torch.Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in (x, a, b)]
        how = (seed, adapters.dropout.threshold, adapters.dropout.amplify)
        result = layer.base_layer(leaves[0]) + 3.0 * (drop(leaves[0], *how) @ leaves[1].T @ leaves[2].T)
        result.square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for one, other in zip(found, written_out(adapters.seeds[0]), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1], written_out(adapters.seeds[1])[1], rtol=1e-2, atol=1e-3)


def test_masters_are_cast_only_when_cast_is_called() -> None:
    """In bfloat16 the layer computes with copies: an update of the masters shows after `refresh`, and not before."""
    wrapped = model().to(torch.bfloat16)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    adapters = LoraLayers(wrapped, torch.bfloat16, 0.0)
    before = wrapped(input_ids=IDS).logits
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.mul_(3)
    assert torch.equal(wrapped(input_ids=IDS).logits, before)
    adapters.cast()
    assert not torch.equal(wrapped(input_ids=IDS).logits, before)
    found = gradients(wrapped)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_dropout_is_off_only_inside_the_block() -> None:
    wrapped = model()
    adapters = LoraLayers(wrapped, torch.float32, 0.5)
    adapters.set_seeds([7] * len(adapters))
    with_dropout = wrapped(input_ids=IDS).logits
    with adapters.without_dropout():
        whole = wrapped(input_ids=IDS).logits
    assert torch.equal(wrapped(input_ids=IDS).logits, with_dropout)
    assert torch.allclose(whole, model()(input_ids=IDS).logits, atol=1e-6)
    assert not torch.allclose(whole, with_dropout, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_layers_of_a_kind_share_a_class(count: int) -> None:
    """Compiled code is bound to the class; one class per layer would compile each layer again."""
    wrapped = model()
    LoraLayers(wrapped, torch.float32, 0.0)
    layers = wrapped.get_base_model().model.layers
    assert type(layers[0].self_attn.q_proj) is type(layers[count - 1].self_attn.o_proj)
