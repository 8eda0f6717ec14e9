"""Tests that Phi-3's MLP in training has the values and gradients of transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from aegis.training.kernels.swiglu import install_swiglu

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler

SHAPE = {"hidden_size": 16, "intermediate_size": 24}


def make(act: str = "silu") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Phi3MLP(Phi3Config(**SHAPE, num_attention_heads=2, hidden_act=act, pad_token_id=0)))


def through(mlp: nn.Sequential, scale: float = 1.0) -> list[Tensor]:
    hidden = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).mul(3 * scale).requires_grad_()
    output = mlp(hidden)
    output.square().sum().backward()
    return [output.detach(), *(t.grad for t in (hidden, mlp[0].gate_up_proj.weight) if t.grad is not None)]


@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_equal_those_of_the_mlp(compiled: bool) -> None:
    plain, ours = make(), make()
    install_swiglu(ours)
    assert type(ours[0]).__name__ == "SwigluPhi3MLP"
    assert isinstance(ours[0], Phi3MLP)
    if compiled:
        # the graph is run as it is: code generation takes a compiler half a minute
        ours.compile(backend="aot_eager", fullgraph=True)
    wanted = through(plain)
    assert len(wanted) == 3
    torch.testing.assert_close(through(ours), wanted)
    for missed, one in zip(through(make(), 1.1), wanted, strict=True):
        assert not torch.allclose(missed, one, rtol=1e-3, atol=1e-3)


def test_other_mlps_stay_as_they_are() -> None:
    others = nn.Sequential(make("gelu")[0], LlamaMLP(LlamaConfig(**SHAPE, num_attention_heads=2)))
    install_swiglu(others)
    assert [type(mlp) for mlp in others] == [Phi3MLP, LlamaMLP]
