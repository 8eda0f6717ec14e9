"""Which of the ways to a faster or smaller step are taken, chosen by what there is, and put in place.

packed            FlashAttention within documents, cosines from a table: no mask, no question to the GPU
dequantized       NF4 weights read by a kernel of our own (`model.frozen`)
compiled          each decoder layer's small kernels fused by torch.compile (`training.compiling`)
captured          the step replayed as CUDA graphs (`training.capture`)
recomputed        decoder layers whose activations are worked out again in the backward pass (`training.recompute`)
offloaded         what those keep goes to the host's memory meanwhile
attention_spared  attention is not worked out again: its results go to the host as well
parked            compiled layers that work nothing out again: all they keep goes to the host's memory meanwhile
embeddings_hosted the input embeddings stay in the host's memory, which sends the rows that a step reads
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from aegis.config.settings import TrainConfig
from aegis.messages import phrase
from aegis.model.soul_hook import decoder_of
from aegis.training.distributed.sharded_base import ShardedBase
from aegis.training.execution.checkpointing import ActivationStore, HostActivationStore, checkpointed, saving_to
from aegis.training.execution.compile import compile_layer, compile_recomputed_layer
from aegis.training.kernels.nf4_linear import install_nf4_linear, supports_nf4_linear
from aegis.training.kernels.swiglu import install_swiglu
from aegis.training.kernels.varlen_attention import RotaryTable, install_attention, supports_varlen

COMPILE_STEPS = 300
"""Steps from which compiling pays for itself: it takes some 15 seconds (README, Benchmarks)."""
_FILLED, _BETWEEN = 0.9, 2**29
"""Of free memory, the part that a plan may fill, and bytes that it must leave: see `fillable`."""
IN_FLIGHT = 2
"""Layers whose kept tensors are on the GPU while the others' are in the host's memory: on their way out, later back."""
_STAYING = 3
"""Layers at the end none of which is parked: see `is_parked`."""


@dataclass(frozen=True)
class ExecutionOptions:
    """What is switched on; see the module. `recomputed` counts layers, the first ones; `parked` others, `is_parked`."""

    varlen_attention: bool = False
    nf4_kernel: bool = False
    compiled: bool = False
    cuda_graphs: bool = False
    checkpointed_layers: int = 0
    offload_checkpoints: bool = False
    keep_attention: bool = False
    cpu_embeddings: bool = False
    offloaded_layers: int = 0

    def __post_init__(self) -> None:
        assert not self.offloaded_layers or (self.compiled and not self.checkpointed_layers), (
            "layers that are parked are compiled"
        )

    @classmethod
    def choose(cls, config: TrainConfig, model: Any, device: torch.device, dtype: torch.dtype) -> ExecutionOptions:
        """Choose by settings, GPU and length of the run; what memory decides is `ways.recomputing`'s.

        Args:
            model: the base as loaded, before the adapter.
        """
        packed = supports_varlen(model, device, dtype)
        quick = device.type == "cuda" and packed
        compiled = compiles(config, possible=quick and find_spec("triton") is not None)
        # what is recorded is one shape of step: nothing that starts or rests, no loss scaling, no addresses that change
        recordable = quick and config.alpha == "scheduled" and dtype == torch.bfloat16 and not config.shard_base
        return cls(
            varlen_attention=packed,
            nf4_kernel=quick and supports_nf4_linear(device) and not config.shard_base,
            compiled=compiled,
            cuda_graphs=recordable and config.cuda_graphs != "off",
            cpu_embeddings=device.type == "cuda" and has_own_head(model),
        )

    def explain(self, layers: int) -> str:
        """One line for people."""
        parts = [
            phrase("train.compiled") if self.compiled else "",
            phrase("train.captured") if self.cuda_graphs else "",
            phrase("train.recomputed", checkpointed_layers=self.checkpointed_layers, layers=layers)
            if self.checkpointed_layers
            else "",
            phrase("train.parked", offloaded_layers=self.offloaded_layers, layers=layers)
            if self.offloaded_layers
            else "",
            phrase("train.attention_spared" if self.keep_attention else "train.offloaded")
            if self.offload_checkpoints
            else "",
            phrase("train.embeddings_hosted") if self.cpu_embeddings else "",
        ]
        return phrase("train.step", parts=", ".join(part for part in parts if part) or phrase("train.plain"))

    def install(self, model: Any, length: int, split: ShardedBase | None = None) -> None:
        """Put it in place on the base, or on the peft model round it.

        Args:
            length: tokens of the longest window.
            split: puts each layer together before it is run; all layers must be recomputed.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        decoder: Any = decoder_of(model)
        if self.varlen_attention:
            install_attention(base)
            # before the embeddings leave: the table goes where the like of them is
            decoder.rotary_emb = RotaryTable(decoder.rotary_emb, length, decoder.get_input_embeddings().weight[:1])
        if self.nf4_kernel:
            install_nf4_linear(base)
        if self.compiled:
            install_swiglu(base)
        if self.compiled or self.checkpointed_layers:
            self._run_layers(decoder, split)
        if self.cpu_embeddings:
            decoder.get_input_embeddings().to("cpu")

    def _run_layers(self, decoder: Any, split: ShardedBase | None) -> None:
        store = HostActivationStore() if self.offload_checkpoints or self.offloaded_layers else ActivationStore()
        if self.offload_checkpoints or self.offloaded_layers:
            # a step that could not be recorded may have ended anywhere
            decoder.register_forward_pre_hook(lambda *_: store.start())
        if self.offloaded_layers:
            assert self.offloaded_layers < len(decoder.layers), "the last layer stays"
            decoder.layers[-1].register_forward_pre_hook(lambda _, given: store.drain(given[0]))
        compiled: dict[tuple[type, bool], Callable[..., Tensor]] = {}
        layers = len(decoder.layers)
        for number, layer in enumerate(decoder.layers):
            again, offloaded_layers = (
                number < self.checkpointed_layers,
                is_offloaded(number, layers, self.offloaded_layers),
            )
            run: Callable[..., Tensor] = type(layer).forward
            if self.compiled:
                kind = type(layer), again
                run = compiled[kind] = compiled.get(kind) or self._compile(run, again)
            if split is not None:
                run = _gather_first(run, split, number)
            # a layer compiled to keep little needs a keeper only where that goes elsewhere
            needs_keeper = offloaded_layers or (again and (self.offload_checkpoints or not self.compiled))
            layer.forward = _LayerRun(layer, run, store if needs_keeper else None, compiled=self.compiled)

    def _compile(self, forward: Callable[..., Tensor], checkpointed_layers: bool) -> Callable[..., Tensor]:
        if checkpointed_layers:
            return compile_recomputed_layer(forward, keep_attention=self.keep_attention)
        return compile_layer(forward)


def compiles(config: TrainConfig, *, possible: bool) -> bool:
    """Whether decoder layers are compiled.

    Args:
        possible: whether there is what it takes; only "auto" asks.
    """
    if config.compile != "auto":
        return config.compile == "on"
    # a compiled layer would have its weights' addresses in it, and a base that is split has no lasting ones
    return possible and config.max_steps >= COMPILE_STEPS and not config.shard_base


def _gather_first(run: Callable[..., Tensor], split: ShardedBase, number: int) -> Callable[..., Tensor]:
    def whole(*args: Any, **kwargs: Any) -> Tensor:
        split.gather(number)
        return run(*args, **kwargs)

    return whole


def is_offloaded(number: int, layers: int, offloaded_layers: int) -> bool:
    """Whether layer `number` is one of so many that are parked: spread evenly, so that copies have the same time each.

    The last three layers are not, if that many may stay: what the others keep leaves while they are worked on, is gone
    when the last of them begins, which is when most is kept, and begins to come back when its backward pass has ended.
    """
    among = max(offloaded_layers, layers - _STAYING)
    return number < among and number * offloaded_layers % among < offloaded_layers


def has_own_head(model: Any) -> bool:
    """Whether the LM head is another matrix than the input embeddings, of which a step reads a few thousand rows."""
    decoder: Any = decoder_of(model)
    return model.get_output_embeddings().weight is not decoder.get_input_embeddings().weight


def host_embeddings(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The input embeddings, if they are kept in the host's memory."""
    decoder: Any = decoder_of(model)
    embed = decoder.get_input_embeddings()
    return embed if embed.weight.device.type == "cpu" else None


class _LayerRun:
    """A decoder layer's forward pass, compiled or recomputed or both."""

    def __init__(
        self, layer: Any, function: Callable[..., Tensor], store: ActivationStore | None, *, compiled: bool
    ) -> None:
        self._layer, self._function, self._keeper, self._compiled = layer, function, store, compiled

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and not hidden.requires_grad:
            # the embeddings' output needs none; with one, the first layer is like the others, and is compiled with them
            hidden = hidden.detach().requires_grad_()

        def run(hidden: Tensor) -> Tensor:
            return self._function(self._layer, hidden, *args, **kwargs)

        if self._keeper is None or not torch.is_grad_enabled():
            return run(hidden)
        if self._compiled:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            return saving_to(run, hidden, self._keeper, [*given, *self._layer.parameters()])
        return checkpointed(run, hidden, self._keeper)


PLAIN = ExecutionOptions()


def activation_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """What one compiled decoder layer keeps for its backward pass; the rest is worked out again.

    A token leaves: the input of both norms (2 · hidden_size), queries and what attention makes of them, keys and
    values, and gate and up (2 · intermediate_size).
    """
    return tokens * itemsize * 2 * sum(_kept_twice(config))


def _kept_twice(config: Any) -> tuple[int, int, int, int]:
    heads, width = config.num_attention_heads, _head_width(config)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return config.hidden_size, width * heads, width * kv_heads, config.intermediate_size


def attention_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """What attention makes in one decoder layer."""
    return int(tokens * itemsize * config.num_attention_heads * _head_width(config))


def free_bytes(device: torch.device) -> int:
    """Of the GPU's memory, what this process may still take."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(free, allowed - torch.cuda.memory_reserved(device))


def usable_bytes(free: int) -> int:
    """Of so many free bytes on a GPU, how many a step may take by its plan.

    The allocator needs the rest for what lies idle between tensors; and while a step is recorded, what the steps before
    it have left stands beside it. (Capped at 3 GiB, a step that was planned with 2.65 asked for 3.05 then.)
    """
    return min(int(_FILLED * free), free - _BETWEEN)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def host_bytes(text: Any, tokens: int, itemsize: int, *, keep_attention: bool) -> int:
    """What offloaded layers keep in the host's pinned memory, of which every piece takes a power of two."""
    pieces = [tokens * text.hidden_size * itemsize]
    if keep_attention:
        pieces.append(attention_bytes(text, tokens, itemsize))
    return int(text.num_hidden_layers * sum(map(_pinned_bytes, pieces)))


def offloaded_tensors(text: Any, tokens: int, itemsize: int) -> list[int]:
    """What one parked layer keeps there, in bytes: `activation_bytes`, piece by piece."""
    return [tokens * itemsize * values for values in _kept_twice(text) for _ in range(2)]


def offloaded_bytes(text: Any, tokens: int, itemsize: int) -> int:
    """As `host_bytes`, of one parked layer."""
    return sum(map(_pinned_bytes, offloaded_tensors(text, tokens, itemsize)))


def _pinned_bytes(size: int) -> int:
    return 1 << (size - 1).bit_length()
