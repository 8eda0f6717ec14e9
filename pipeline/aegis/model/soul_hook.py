"""Hang a soul on a base.

It hangs on the decoder's output, after the final norm, by a forward hook: training, evaluation and `generate` then
all pass through it. Never round `lm_head`: fused losses read lm_head.weight and walk past whatever wraps the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from aegis.errors import UsageError
from aegis.soul.module import Soul


def decoder_of(model: Any) -> nn.Module:
    """The stack that ends with the final norm and gives last_hidden_state; `model` may be wrapped by peft."""
    decoder = model.get_base_model().get_decoder() if hasattr(model, "get_base_model") else model.get_decoder()
    if not isinstance(decoder, nn.Module):
        raise UsageError("attach.no_decoder", name=type(model).__name__)
    return decoder


@contextmanager
def soul_hook(model: Any, soul: Soul) -> Iterator[None]:
    """Let every forward pass of `model` go through `soul` inside the block.

    Raises:
        UsageError: the widths differ.
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
