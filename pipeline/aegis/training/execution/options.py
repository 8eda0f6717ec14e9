"""The options for a faster or smaller step, and the choice among them; `execution.apply_options` applies them.

varlen_attention     FlashAttention within documents and tabulated cosines: no mask, nothing is read from the GPU
nf4_kernel           NF4 weights are read by AEGIS's kernel (`kernels.nf4_linear`)
compiled             torch.compile fuses each decoder layer's small kernels (`execution.compile`)
cuda_graphs          the step is replayed as CUDA graphs (`model.cuda_graphs`)
checkpointed_layers  layers that recompute their activations in the backward pass (`execution.activation_checkpointing`)
offload_checkpoints  the inputs of checkpointed layers wait in the host's memory
keep_attention       attention is not recomputed: its results wait in the host's memory as well
offloaded_layers     compiled layers that recompute nothing: all their activations wait in the host's memory
cpu_embeddings       the input embeddings stay in the host's memory, which sends the rows that a step reads
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from aegis.config.train_settings import TrainConfig
from aegis.messages import phrase
from aegis.model.soul_hook import decoder_of
from aegis.training.kernels.nf4_linear import supports_nf4_linear
from aegis.training.kernels.varlen_attention import supports_varlen

COMPILE_STEPS = 300
"""Steps from which compiling pays for itself: it takes about 15 seconds."""
IN_FLIGHT = 2
"""Offloaded layers whose tensors are on the GPU at one time: on their way out, later on their way back."""
_STAYING = 3
"""Layers at the end of the decoder that are not offloaded: see `is_offloaded`."""


@dataclass(frozen=True)
class ExecutionOptions:
    """The options that are switched on; the module's docstring explains each.

    Attributes:
        checkpointed_layers: number of layers, counted from the first.
        offloaded_layers: number of layers, spread by `is_offloaded`. Such layers are compiled, and no layer is
            checkpointed beside them.
    """

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
            "offloaded layers are compiled, and none is checkpointed beside them"
        )

    @classmethod
    def choose(cls, config: TrainConfig, model: Any, device: torch.device, dtype: torch.dtype) -> ExecutionOptions:
        """Choose by settings, GPU and number of steps; `planning.options_that_fit` chooses what memory decides.

        Args:
            model: the base as loaded, before the adapter.
            dtype: the dtype that training computes in.
        """
        varlen = supports_varlen(model, device, dtype)
        fast = device.type == "cuda" and varlen
        # a CUDA graph needs every step to be identical: no learned alpha, no loss scaling, no weights that are gathered
        identical = config.alpha == "scheduled" and dtype == torch.bfloat16 and not config.shard_base
        return cls(
            varlen_attention=varlen,
            nf4_kernel=fast and supports_nf4_linear(device),
            compiled=compiles(config, possible=fast and find_spec("triton") is not None),
            cuda_graphs=fast and identical and config.cuda_graphs != "off",
            cpu_embeddings=device.type == "cuda" and has_own_head(model),
        )

    def explain(self, layers: int) -> str:
        """Return the options as one line of text.

        Args:
            layers: number of decoder layers.
        """
        names = []
        if self.compiled:
            names.append(phrase("train.compiled"))
        if self.cuda_graphs:
            names.append(phrase("train.cuda_graphs"))
        if self.checkpointed_layers:
            names.append(
                phrase("train.checkpointed_layers", checkpointed_layers=self.checkpointed_layers, layers=layers)
            )
        if self.offloaded_layers:
            names.append(phrase("train.offloaded_layers", offloaded_layers=self.offloaded_layers, layers=layers))
        if self.offload_checkpoints:
            names.append(phrase("train.keep_attention" if self.keep_attention else "train.offload_checkpoints"))
        if self.cpu_embeddings:
            names.append(phrase("train.cpu_embeddings"))
        return phrase("train.step", options=", ".join(names) or phrase("train.plain"))


PLAIN = ExecutionOptions()


def compiles(config: TrainConfig, *, possible: bool) -> bool:
    """Whether decoder layers are compiled.

    Args:
        possible: whether this machine has what compiling needs; only the setting "auto" depends on it.
    """
    if config.compile != "auto":
        return config.compile == "on"
    return possible and config.max_steps >= COMPILE_STEPS


def is_offloaded(number: int, layers: int, offloaded_layers: int) -> bool:
    """Whether layer `number` is one of the offloaded layers.

    They are spread evenly, so that every copy has the same time. The last three layers stay on the GPU where the number
    allows it: the copies out run while these layers compute and end before the last of them begins, which is the step's
    peak; the copies back begin after its backward pass.

    Args:
        layers: number of decoder layers.
        offloaded_layers: how many of them are offloaded.
    """
    candidates = max(offloaded_layers, layers - _STAYING)
    return number < candidates and number * offloaded_layers % candidates < offloaded_layers


def has_own_head(model: Any) -> bool:
    """Whether the LM head is not the input embeddings; a step reads only a few thousand rows of the embeddings."""
    decoder: Any = decoder_of(model)
    return model.get_output_embeddings().weight is not decoder.get_input_embeddings().weight
