"""Applies the execution options to a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from aegis.model.soul_hook import decoder_of
from aegis.training.execution.activation_checkpointing import ActivationStore, checkpointed, saving_to
from aegis.training.execution.compile import compile_checkpointed_layer, compile_layer
from aegis.training.execution.offloading import HostActivationStore
from aegis.training.execution.options import ExecutionOptions, is_offloaded
from aegis.training.kernels.nf4_linear import install_nf4_linear
from aegis.training.kernels.swiglu import install_swiglu
from aegis.training.kernels.varlen_attention import RotaryTable, install_attention


def apply_options(options: ExecutionOptions, model: Any, max_length: int) -> None:
    """Apply `options` to the model.

    Args:
        model: the base, or the peft model round it.
        max_length: tokens of the longest window.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder: Any = decoder_of(model)
    if options.varlen_attention:
        install_attention(base)
        # before the embeddings move: the table is made on the device of this row of them
        decoder.rotary_emb = RotaryTable(decoder.rotary_emb, max_length, decoder.get_input_embeddings().weight[:1])
    if options.nf4_kernel:
        install_nf4_linear(base)
    if options.compiled:
        install_swiglu(base)
    if options.compiled or options.checkpointed_layers:
        _install_layers(options, decoder)
    if options.cpu_embeddings:
        decoder.get_input_embeddings().to("cpu")


def host_embeddings(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The input embeddings if they are in the host's memory, else None."""
    decoder: Any = decoder_of(model)
    embed = decoder.get_input_embeddings()
    return embed if embed.weight.device.type == "cpu" else None


@contextmanager
def plain_layers(options: ExecutionOptions, model: Any) -> Iterator[None]:
    """Let the decoder take passes of any shape, with masks and a cache, while the block runs; there is no gradient.

    A compiled layer would be compiled again for another shape, and attention within documents knows no mask.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder: Any = decoder_of(model)
    layers = [layer.forward for layer in decoder.layers if isinstance(layer.forward, _LayerForward)]
    attention = base.config.get_text_config()._attn_implementation
    if options.varlen_attention:
        base.set_attn_implementation("sdpa")
    for layer in layers:
        layer.plain = True
    try:
        yield
    finally:
        for layer in layers:
            layer.plain = False
        if options.varlen_attention:
            base.set_attn_implementation(attention)


def _install_layers(options: ExecutionOptions, decoder: Any) -> None:
    store = _install_store(options, decoder)
    compiled: dict[tuple[type, bool], Callable[..., Tensor]] = {}
    for number, layer in enumerate(decoder.layers):
        is_checkpointed = number < options.checkpointed_layers
        run: Callable[..., Tensor] = type(layer).forward
        if options.compiled:
            kind = type(layer), is_checkpointed
            run = compiled[kind] = compiled.get(kind) or _compile(options, run, is_checkpointed)
        # a compiled checkpointed layer keeps little by itself: it needs a store only if that is offloaded
        needs_store = is_offloaded(number, len(decoder.layers), options.offloaded_layers) or (
            is_checkpointed and (options.offload_checkpoints or not options.compiled)
        )
        layer.forward = _LayerForward(layer, run, store if needs_store else None, compiled=options.compiled)


def _install_store(options: ExecutionOptions, decoder: Any) -> ActivationStore:
    if not (options.offload_checkpoints or options.offloaded_layers):
        return ActivationStore()
    assert options.offloaded_layers < len(decoder.layers), "the last layer is not offloaded"
    store = HostActivationStore(next(decoder.layers.parameters()).device)
    # a step that could not be recorded may have ended anywhere
    decoder.register_forward_pre_hook(lambda *_: store.start())
    if options.offloaded_layers:
        decoder.layers[-1].register_forward_pre_hook(lambda _, given: store.drain(given[0]))
    return store


def _compile(options: ExecutionOptions, forward: Callable[..., Tensor], is_checkpointed: bool) -> Callable[..., Tensor]:
    if is_checkpointed:
        return compile_checkpointed_layer(forward, keep_attention=options.keep_attention)
    return compile_layer(forward)


class _LayerForward:
    """The forward pass of a decoder layer that is compiled, checkpointed or both."""

    def __init__(
        self, layer: Any, function: Callable[..., Tensor], store: ActivationStore | None, *, compiled: bool
    ) -> None:
        self._layer, self._function, self._store, self._compiled = layer, function, store, compiled
        self.plain = False

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.plain:
            return type(self._layer).forward(self._layer, hidden, *args, **kwargs)
        if self._compiled and not torch.is_grad_enabled():
            # as in a training step: without gradients, the layer would be compiled once more, which takes seconds
            with torch.enable_grad():
                return self._function(self._layer, hidden.detach().requires_grad_(), *args, **kwargs).detach()
        if torch.is_grad_enabled() and not hidden.requires_grad:
            # the embeddings' output needs no gradient; with one, the first layer is compiled like the others
            hidden = hidden.detach().requires_grad_()

        def run(hidden: Tensor) -> Tensor:
            return self._function(self._layer, hidden, *args, **kwargs)

        if self._store is None or not torch.is_grad_enabled():
            return run(hidden)
        if self._compiled:
            shared = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            return saving_to(run, hidden, self._store, [*shared, *self._layer.parameters()])
        return checkpointed(run, hidden, self._store)
