"""Tests of the bytes of activations that one compiled layer keeps, counted from the model's shape."""

from __future__ import annotations

from aegis.training.execution.activation_bytes import (
    activation_bytes,
    attention_bytes,
    offloaded_checkpoint_bytes,
    offloaded_layer_bytes,
)
from tests.training.conftest import phi35_config


def test_activations_of_a_layer_are_counted_from_its_shape() -> None:
    """Phi-3.5-mini: 70 KB per token in 16 bit (6 · 3072 + 2 · 8192 values); grouped heads keep less."""
    config = phi35_config()
    assert activation_bytes(config, 1, 2) == 2 * (6 * 3072 + 2 * 8192) == 69_632
    assert attention_bytes(config, 10, 2) == 2 * 10 * 3072
    config.num_key_value_heads = 8
    assert activation_bytes(config, 10, 2) == 20 * (4 * 3072 + 2 * 768 + 2 * 8192)


def test_every_pinned_tensor_takes_a_power_of_two() -> None:
    config = phi35_config()
    assert offloaded_layer_bytes(config, 512, 2) == 6 * 512 * 8192 + 2 * 512 * 16384
    assert offloaded_checkpoint_bytes(config, 512, 2, keep_attention=False) == 32 * 512 * 8192
    assert offloaded_checkpoint_bytes(config, 512, 2, keep_attention=True) == 2 * 32 * 512 * 8192
