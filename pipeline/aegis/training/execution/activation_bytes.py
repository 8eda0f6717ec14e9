"""Bytes that decoder layers keep for the backward pass, on the GPU and in the host's memory, from the model's shape."""

from __future__ import annotations

from typing import Any


def activation_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """Bytes that one compiled decoder layer keeps for its backward pass; it recomputes the rest.

    It keeps per token: the input of both norms (2 · hidden_size), queries and attention's result (2 · heads · width),
    keys and values (2 · key-value heads · width), gate and up (2 · intermediate_size).

    Args:
        config: the text config of a transformers model.
        itemsize: bytes per value.
    """
    return sum(kept_tensor_bytes(config, tokens, itemsize))


def kept_tensor_bytes(config: Any, tokens: int, itemsize: int) -> list[int]:
    """The bytes of each tensor that `activation_bytes` adds up."""
    heads, width = config.num_attention_heads, _head_width(config)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    kept_twice = config.hidden_size, width * heads, width * kv_heads, config.intermediate_size
    return [tokens * itemsize * values for values in kept_twice for _ in range(2)]


def attention_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """Bytes of attention's result in one decoder layer."""
    return int(tokens * itemsize * config.num_attention_heads * _head_width(config))


def offloaded_checkpoint_bytes(config: Any, tokens: int, itemsize: int, *, keep_attention: bool) -> int:
    """Pinned host memory that the inputs of all layers take when checkpoints are offloaded.

    Args:
        keep_attention: attention's results are offloaded as well.
    """
    tensors = [tokens * config.hidden_size * itemsize]
    if keep_attention:
        tensors.append(attention_bytes(config, tokens, itemsize))
    return int(config.num_hidden_layers * sum(map(_pinned_bytes, tensors)))


def offloaded_layer_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """Pinned host memory that one offloaded layer takes."""
    return sum(map(_pinned_bytes, kept_tensor_bytes(config, tokens, itemsize)))


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _pinned_bytes(size: int) -> int:
    """torch pins a power of two for every tensor."""
    return 1 << (size - 1).bit_length()
