"""Registers a soul as a forward hook on a base's decoder.

The hook changes the decoder's output, after the final norm, so training, evaluation and `generate` all use the soul.
It must not wrap `lm_head`: fused losses read lm_head.weight directly and would skip a wrapper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from aegis.errors import UsageError
from aegis.soul.module import Soul


def decoder_of(model: Any) -> nn.Module:
    """Return the decoder, whose output is last_hidden_state after the final norm; `model` may be a peft model."""
    decoder = model.get_base_model().get_decoder() if hasattr(model, "get_base_model") else model.get_decoder()
    if not isinstance(decoder, nn.Module):
        raise UsageError("attach.no_decoder", name=type(model).__name__)
    return decoder


@contextmanager
def soul_hook(model: Any, soul: Soul) -> Iterator[None]:
    """Apply `soul` in every forward pass of `model` while the block runs.

    Raises:
        UsageError: the hidden sizes differ.
    """
    width = model.config.get_text_config().hidden_size
    if width != soul.hidden_size:
        raise UsageError("attach.other_width", hidden_size=soul.hidden_size, width=width)

    def mix(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = soul(output.last_hidden_state)
        return output

    handle = decoder_of(model).register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()
