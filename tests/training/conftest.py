"""Fixtures: a training state without disk, of a tiny random Llama with adapter and soul, and random batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.data.packing import IGNORED, Batch
from aegis.model.soul_hook import soul_hook
from aegis.training.adapter_and_soul import assemble
from aegis.training.batch import MicroBatch
from aegis.training.optimizer import make_optimizer
from aegis.training.state import TrainState

CPU = torch.device("cpu")
WIDTH, VOCABULARY = 32, 64

MakeState = Callable[..., TrainState]


@pytest.fixture
def make_state() -> Iterator[MakeState]:
    """Make a state; the same seed gives the same state. `scaler` scales the loss, as float16 training does."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with ExitStack() as stack:

        def make(
            config: TrainConfig, *, scaler: torch.amp.GradScaler | None = None, seed: int = 0, layers: int = 1
        ) -> TrainState:
            shape: dict[str, Any] = {
                "vocab_size": VOCABULARY,
                "hidden_size": WIDTH,
                "intermediate_size": 48,
                "num_hidden_layers": layers,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "pad_token_id": 0,
            }
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).requires_grad_(False)
            settings = config.model_copy(update={"lora_alpha": 8, "seed": seed})
            model, lora_layers, soul, _ = assemble(base, settings, CPU, torch.float32, base_name="tiny")
            stack.enter_context(soul_hook(model, soul))
            scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
            return TrainState(model.train(), soul, lora_layers, make_optimizer(model, soul, config), scaler)

        yield make


@pytest.fixture
def partitioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the partitioned graphs directly: the compiler would take half a minute to generate code for them."""
    from torch._dynamo.backends.debugging import aot_eager_decomp_partition

    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", aot_eager_decomp_partition)


def noise(seed: int, *, windows: int = 2, length: int = 12, trained: bool = True) -> MicroBatch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCABULARY, (windows, length))
    labels = ids.copy() if trained else np.full_like(ids, IGNORED)
    labels[:, :3] = IGNORED
    positions = np.tile(np.arange(length), (windows, 1))
    return MicroBatch.make(Batch(ids, labels, positions))


def phi35_config() -> Any:
    """Return transformers' config of Phi-3.5-mini's shape."""
    from transformers import AutoConfig

    shape = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32}
    return AutoConfig.for_model("phi3", num_key_value_heads=32, pad_token_id=0, **shape)
