"""How much memory a training would take, worked out before it: no weights are read, nothing is allocated.

    peak = weights + adapter + soul + gradients + optimizer + workspace      from shapes
         + activations + head and loss                                       from a step on tensors without data

The step is the real one: transformers' own decoder, the adapter's arithmetic on bitsandbytes' own modules, the
recomputation, the soul, the chunked loss; only kernels are stood in for (`ledger`). Of compiled layers, whose products
between two matrices are never whole in memory, what is kept comes from `acceleration.activation_bytes` instead.

Of a base that is split (`shard_base`), the weights are what one process holds; the rest is the same in each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aegis.config.settings import TrainConfig
from aegis.model.load import silence_dropout
from aegis.model.lora import Coverage, attach_lora, coverage, resolve_targets
from aegis.model.nf4_format import BLOCK, SECOND_BLOCK
from aegis.model.soul_hook import decoder_of, soul_hook
from aegis.soul.module import Soul
from aegis.training.distributed.sharded_base import RESIDENT_LAYERS, layout
from aegis.training.execution.options import (
    IN_FLIGHT,
    ExecutionOptions,
    activation_bytes,
    attention_bytes,
    has_own_head,
)
from aegis.training.kernels.chunked_loss import head_loss
from aegis.training.kernels.lora_layers import LoraLayers
from aegis.training.kernels.varlen_attention import has_tabulable_rope
from aegis.training.planning.allocation_tracker import AllocationTracker, FourBitProduct, emulating_cuda

_CUBLAS_BYTES = {"hopper": 32 << 20, "older": 8 << 20}
"""Workspace torch gives cuBLAS (aten/src/ATen/cuda/CublasHandlePool.cpp); none on a CPU."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the fullest moment of a step."""

    weights: int
    adapter: int
    soul: int
    gradients: int
    optimizer: int
    activations: int
    head_and_loss: int
    workspace: int

    @property
    def peak(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class ShardedWeights:
    """Bytes of the base that one of several processes holds of it; together they are the estimate's weights.

    Attributes:
        part: its part of every decoder layer's matrices.
        layers: the layers that are whole at a time.
        whole: norms, biases, LM head, the scales of NF4, embeddings that are not the host's; every process has them.
    """

    part: int
    layers: int
    whole: int


class MemoryEstimator:
    """A base with an adapter and a soul as a config wants them, in shapes only.

    Args:
        folder: config.json is all that is read.
        device: "cpu" computes in float32, "cuda" in bfloat16.
        capability: of the GPU; its cuBLAS workspace depends on it.

    Attributes:
        parameters: of the base.
        base_bytes: of all its parameters and buffers, as training holds them.
        hosted_bytes: of its input embeddings, if they stay in the host's memory.
        matrix_parameters: of its linear layers and its LM head, each once for every token.
        layers: decoder layers.
        text: the config of the decoder.
        dtype: of the hidden state.
        targets: what the adapter is on.
        trained: trained parameters by part.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        device: Literal["cuda", "cpu"] = "cuda",
        capability: tuple[int, int] | None = None,
    ) -> None:
        self._config, self.dtype = config, torch.float32 if device == "cpu" else torch.bfloat16
        model = _meta_base(folder, config.load_in, self.dtype)
        silence_dropout(model)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.matrix_parameters = sum(
            m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)
        )
        self.base_bytes = sum(_stored_bytes(tensor) for tensor in [*model.parameters(), *model.buffers()])
        decoder: Any = decoder_of(model)
        self._rows = [[_matrix_bytes(p) for p in layer.parameters() if p.ndim > 1] for layer in decoder.layers]
        self._packs = device == "cuda" and has_tabulable_rope(model)
        targets = resolve_targets(model, config.lora_targets)
        self.targets: list[Coverage] = coverage(model, targets, config.lora_r)
        with torch.device("meta"):
            self.model = attach_lora(
                model,
                targets,
                rank=config.lora_r,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                base_name="",
                revision=None,
            ).train()
        LoraLayers(self.model, self.dtype, config.lora_dropout)
        self.text = self.model.config.get_text_config()
        self._decoder: Any = decoder_of(self.model)
        hosted = device == "cuda" and has_own_head(self.model)
        self.hosted_bytes = int(self.model.get_input_embeddings().weight.nbytes) * hosted
        self.layers = int(self.text.num_hidden_layers)
        self.soul = _meta_soul(self.text.hidden_size, config)
        self._adapter = [p for p in self.model.parameters() if p.requires_grad]
        self._trained = [*self._adapter, *(p for p in self.soul.parameters() if p.requires_grad)]
        self.trained = {
            "adapter": sum(p.numel() for p in self._adapter),
            "soul": sum(p.numel() for p in self._trained) - sum(p.numel() for p in self._adapter),
        }
        for parameter in self._trained:
            parameter.grad = torch.empty_like(parameter)  # one buffer from the first step on
        self._peaks: dict[tuple[int, bool, bool], tuple[int, int, int]] = {}
        self._workspace = 0 if device == "cpu" else _CUBLAS_BYTES["hopper" if (capability or (0,)) >= (9,) else "older"]

    def estimate(
        self,
        max_length: int,
        *,
        checkpointed_layers: int,
        compiled: bool = False,
        offload_checkpoints: bool = False,
        keep_attention: bool = False,
        offloaded_layers: int = 0,
        parts: int = 1,
    ) -> Estimate:
        """Estimate for windows of `max_length` tokens.

        Args:
            recomputed: layers whose activations are worked out again in the backward pass.
            compiled: the layers are compiled.
            offloaded: the inputs that recomputed layers keep are in the host's memory.
            attention_spared: and so is what attention makes.
            parked: compiled layers of which all that they keep is there, none of them recomputed; not all layers.
            parts: processes that the base is split over.
        """
        assert offloaded_layers < self.layers, "the last layer stays"
        assert compiled or not offloaded_layers, "layers that are parked are compiled"
        tokens = self._config.batch_size * max_length
        given = tokens * self.text.hidden_size * self.dtype.itemsize
        kept = self.layers - checkpointed_layers
        if kept and not compiled:
            peak, head, one = self._peak(max_length, recompute=False, compiled=False)
            peak -= checkpointed_layers * (one - given)
        else:
            peak, head, one = self._peak(max_length, recompute=True, compiled=compiled)
            # IN_FLIGHT may still be leaving when the last layer but one runs, and the last keeps nothing yet
            away = max(0, offloaded_layers - (IN_FLIGHT - 1))
            # of the layer that is worked on, the step has counted everything already
            peak += max(0, kept - away - 1) * (activation_bytes(self.text, tokens, self.dtype.itemsize) - one)
            peak -= away * one
        if offload_checkpoints:
            peak -= max(0, checkpointed_layers - IN_FLIGHT) * given
        if keep_attention:
            peak += min(checkpointed_layers, IN_FLIGHT) * attention_bytes(self.text, tokens, self.dtype.itemsize)
        weights = self.base_bytes - self.hosted_bytes
        if parts > 1:
            weights = sum(vars(self.held(parts)).values())
        gradients = sum(p.nbytes for p in self._trained)
        low = 0 if self.dtype == torch.float32 else self.trained["adapter"] * self.dtype.itemsize
        return Estimate(
            weights=weights,
            adapter=sum(p.nbytes for p in self._adapter) + low,
            soul=sum(tensor.nbytes for tensor in [*self.soul.parameters(), *self.soul.buffers()]),
            gradients=gradients,
            optimizer=2 * gradients,
            activations=peak - head,
            head_and_loss=head,
            workspace=self._workspace,
        )

    def held(self, parts: int) -> ShardedWeights:
        """What one of so many processes holds of the base while a step is worked on."""
        layers = [layout(rows, parts)[1] for rows in self._rows]
        return ShardedWeights(
            part=sum(layers) // parts,
            layers=max(layers) * min(RESIDENT_LAYERS, len(layers)),
            whole=self.base_bytes - sum(map(sum, self._rows)) - self.hosted_bytes,
        )

    def _peak(self, max_length: int, *, recompute: bool, compiled: bool) -> tuple[int, int, int]:
        """The fullest moment of a step in bytes, what head and loss have of it, and what one more layer adds.

        A straight line through two and three layers: decoder layers are alike, and every one keeps the same. Worked out
        once; what ways to train differ in besides is arithmetic.
        """
        asked = max_length, recompute, compiled
        if asked not in self._peaks:
            least = min(2, self.layers)
            peak, head = self._run(max_length, least, recompute, compiled)
            one = 0
            if self.layers > least:
                more, head = self._run(max_length, least + 1, recompute, compiled)
                one = more - peak
            self._peaks[asked] = peak + (self.layers - least) * one, head, one
        return self._peaks[asked]

    def _run(self, max_length: int, layers: int, recompute: bool, compiled: bool) -> tuple[int, int]:
        """As `_peak`, of the decoder's first layers."""
        decoder = self._decoder
        whole, rotary = decoder.layers, getattr(decoder, "rotary_emb", None)
        decoder.layers = whole[:layers]
        ExecutionOptions(varlen_attention=self._packs, checkpointed_layers=layers * recompute).install(
            self.model, max_length
        )
        known = [*self.model.parameters(), *self.model.buffers(), *self.soul.parameters(), *self.soul.buffers()]
        tracker = AllocationTracker([*known, *(p.grad for p in self._trained if p.grad is not None)])
        try:
            with soul_hook(self.model, self.soul), tracker, emulating_cuda(fused=compiled):
                self.soul.cache_rotation()
                self._loss(tracker, max_length).backward()
                self.soul.release()
                self.soul.retract()
        finally:
            for layer in decoder.layers:
                layer.__dict__.pop("forward", None)  # as `install` left it
            decoder.layers = whole
            if rotary is not None:
                decoder.rotary_emb = rotary
        return tracker.peak, tracker.part_at_peak

    def _loss(self, tracker: AllocationTracker, max_length: int) -> Tensor:
        # as training.objective.summed_loss, with the two forms of keeping documents apart said from here
        windows = self._config.batch_size
        ids = torch.zeros(windows, max_length, dtype=torch.int64, device="meta")
        apart: dict[str, Any]
        if self._packs:
            edges = torch.zeros(windows * 2 + 1, dtype=torch.int32, device="meta")
            apart = {"cu_seq_lens_q": edges, "max_length_q": max_length}
        else:
            apart = {"attention_mask": torch.zeros(windows, 1, max_length, max_length, dtype=torch.bool, device="meta")}
        hidden = self._decoder(input_ids=ids, position_ids=ids, use_cache=False, **apart).last_hidden_state
        head = self.model.get_output_embeddings()
        targets = ids.flatten()
        with tracker.part():
            return head_loss(
                hidden.flatten(0, 1).index_select(0, targets), head.weight, getattr(head, "bias", None), targets
            )


def _meta_soul(width: int, config: TrainConfig) -> Soul:
    learned = config.alpha != "scheduled"
    return Soul(
        width,
        kind=config.rotation,
        init="identity",
        map_=config.rotation_map,
        alpha_is_learned=learned,
        counter_scale=config.counter_scale,
    ).to("meta")


def _meta_base(folder: Path, load_in: Literal["4bit", "16bit"], dtype: torch.dtype) -> Any:
    """The base as `model.load.load_base` makes it, on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        if load_in == "4bit":
            quantizer = AutoHfQuantizer.from_config(
                BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=dtype,
                )
            )
            quantizer.pre_quantized = False
            quantizer.preprocess_model(model=model, dtype=dtype, device_map=None)
            model.is_loaded_in_4bit = True
    for module in model.modules():
        if _is_four_bit(module):
            module.forward = partial(_four_bit_forward, module)
        if isinstance(getattr(module, "rope_type", None), str):
            # longrope and dynamic choose their factors by the positions' values; their sizes are those of the default
            module.rope_type = "default"
    return model.requires_grad_(False)


def _four_bit_forward(module: Any, x: Tensor) -> Tensor:
    product: Tensor = FourBitProduct.apply(x, module.weight, module.out_features, module.in_features)  # type: ignore[no-untyped-call]
    return product if module.bias is None else product + module.bias


def _is_four_bit(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")


def _stored_bytes(tensor: Tensor) -> int:
    """As `model.load.footprint` counts: for NF4 half a byte a weight, a byte a block, four bytes a block of blocks."""
    if not hasattr(tensor, "quant_state"):
        return tensor.nbytes
    blocks = -(-tensor.numel() // BLOCK)
    return _matrix_bytes(tensor) + blocks + 4 * -(-blocks // SECOND_BLOCK)


def _matrix_bytes(tensor: Tensor) -> int:
    """Without the scales of NF4."""
    return -(-tensor.numel() // 2) if hasattr(tensor, "quant_state") else tensor.nbytes
