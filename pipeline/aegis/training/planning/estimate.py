"""Estimates the memory of a training beforehand: no weights are read and nothing is allocated.

    peak = weights + adapter + soul + gradients + optimizer + workspace      from shapes
         + activations + head and loss                                       from a step on tensors without data

The step is the real one: transformers' own decoder, the adapter's arithmetic on bitsandbytes' own modules, activation
checkpointing, the soul, the chunked loss. Only kernels are replaced (`planning.allocation_tracker`). Compiled layers
never hold a complete tensor between two matrix products, so what they keep comes from `execution.activation_bytes`.

The weights of a sharded base (`shard_base`) are what one process holds; the rest is the same in each process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aegis.config.train_settings import TrainConfig
from aegis.model.soul_hook import decoder_of, soul_hook
from aegis.training.adapter_and_soul import assemble
from aegis.training.distributed.sharded_base import GATHERED_LAYERS, is_sharded, shard_bytes
from aegis.training.execution.activation_bytes import activation_bytes, attention_bytes
from aegis.training.execution.apply_options import apply_options
from aegis.training.execution.options import IN_FLIGHT, ExecutionOptions, has_own_head
from aegis.training.kernels.chunked_divergence import head_divergence
from aegis.training.kernels.chunked_loss import head_loss
from aegis.training.kernels.varlen_attention import has_tabulable_rope
from aegis.training.planning.allocation_tracker import AllocationTracker, emulating_cuda
from aegis.training.planning.finish_bytes import finish_bytes
from aegis.training.planning.memory_parts import Estimate, ShardedWeights
from aegis.training.planning.meta_base import matrix_rows, meta_base, stored_bytes

_CUBLAS_BYTES = {"hopper": 32 << 20, "older": 8 << 20}
"""The workspace that torch gives cuBLAS (aten/src/ATen/cuda/CublasHandlePool.cpp); a CPU has none."""

_WITHOUT_EFFECT = {"activation_checkpointing", "compile", "cuda_graphs", "gpu_memory_gib", "max_length", "finish_steps"}
"""Settings that change nothing of a step whose length and kind of layers are given."""
_PEAKS: dict[tuple[object, ...], tuple[int, int, int]] = {}
"""What the steps of this process's estimators take: one command makes several of the same base, for plan, finish and
training."""


class MemoryEstimator:
    """A base with an adapter and a soul, as a config describes them, in shapes only.

    Args:
        folder: only config.json is read.
        device: "cpu" computes in float32, "cuda" in bfloat16.
        capability: the GPU's; the cuBLAS workspace depends on it.
        finish_types: the types of the weights in a finish (`FinishFacts.types`); None for no finish.

    Attributes:
        parameters: number of the base's parameters.
        base_bytes: all its parameters and buffers, as training holds them.
        hosted_bytes: its input embeddings, if they stay in the host's memory, else 0.
        matrix_parameters: parameters of its linear layers and its LM head, which every token uses once.
        layers: number of decoder layers.
        text: the config of the decoder.
        dtype: the dtype of the hidden state.
        targets: the modules that have an adapter.
        trained: number of trained parameters by part.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        device: Literal["cuda", "cpu"] = "cuda",
        capability: tuple[int, int] | None = None,
        finish_types: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self.dtype = config, torch.float32 if device == "cpu" else torch.bfloat16
        base = meta_base(folder, config.load_in, self.dtype)
        self.parameters = sum(p.numel() for p in base.parameters())
        self.matrix_parameters = sum(m.in_features * m.out_features for m in base.modules() if isinstance(m, nn.Linear))
        self.base_bytes = sum(stored_bytes(tensor) for tensor in [*base.parameters(), *base.buffers()])
        decoder: Any = decoder_of(base)
        self._decoder = decoder
        self._matrices = [[matrix_rows(p) for p in layer.parameters() if is_sharded(p)] for layer in decoder.layers]
        self._shards_on_host = config.shard_offload and device == "cuda"
        self._varlen = device == "cuda" and has_tabulable_rope(base)
        hosted = device == "cuda" and has_own_head(base)
        self.hosted_bytes = int(base.get_input_embeddings().weight.nbytes) * hosted
        self.text = base.config.get_text_config()
        self.layers = int(self.text.num_hidden_layers)
        # a random rotation takes time to draw, and as much memory as the identity
        fast_start = config.model_copy(update={"rotation_init": "identity"})
        with torch.device("meta"):
            assembly = assemble(base, fast_start, torch.device("meta"), self.dtype)
        self.model, self.soul, self.targets = assembly.model.train(), assembly.soul, assembly.coverage
        inner, types = self.model.get_base_model(), finish_types or {}
        self.finish = finish_bytes(inner, types, self.dtype, hosted=hosted, in_blocks=device == "cuda")
        self._adapter = [p for p in self.model.parameters() if p.requires_grad]
        soul = [p for p in self.soul.parameters() if p.requires_grad]
        self.trained = {
            "adapter": sum(p.numel() for p in self._adapter),
            "soul": sum(p.numel() for p in soul),
        }
        self._trained = [*self._adapter, *soul]
        for parameter in self._trained:
            parameter.grad = torch.empty_like(parameter)  # one buffer from the first step on
        same_steps = config.model_dump_json(exclude=_WITHOUT_EFFECT)
        self._steps = (folder / "config.json").read_bytes(), same_steps, device
        self._workspace = 0 if device == "cpu" else _CUBLAS_BYTES["hopper" if (capability or (0,)) >= (9,) else "older"]

    def estimate(self, max_length: int, options: ExecutionOptions, *, world_size: int = 1) -> Estimate:
        """Estimate a step with windows of `max_length` tokens.

        Args:
            options: only what is compiled, checkpointed and offloaded is read. At least one layer is not offloaded.
            world_size: number of processes that the base is sharded over.
        """
        assert options.offloaded_layers < self.layers, "the last layer is not offloaded"
        peak, head_and_loss = self._step_bytes(max_length, options)
        weights = max(self.base_bytes - self.hosted_bytes, self.finish.device)
        if world_size > 1:
            weights = sum(vars(self.sharded_weights(world_size)).values())
        gradients = sum(p.nbytes for p in self._trained)
        casts = 0 if self.dtype == torch.float32 else self.trained["adapter"] * self.dtype.itemsize
        return Estimate(
            weights=weights,
            adapter=sum(p.nbytes for p in self._adapter) + casts,
            soul=sum(tensor.nbytes for tensor in [*self.soul.parameters(), *self.soul.buffers()]),
            gradients=gradients,
            optimizer=2 * gradients,
            activations=peak - head_and_loss,
            head_and_loss=head_and_loss,
            workspace=self._workspace,
        )

    def sharded_weights(self, world_size: int) -> ShardedWeights:
        """What one of `world_size` processes holds of the base during a step."""
        layers = self._shards(world_size)
        return ShardedWeights(
            shard=2 * max(layers) if self._shards_on_host else sum(layers),
            gathered_layers=max(layers) * world_size * GATHERED_LAYERS,
            replicated=self.base_bytes - sum(size for layer in self._matrices for size, _ in layer) - self.hosted_bytes,
        )

    def offloaded_shard(self, world_size: int) -> int:
        """Bytes of host memory for what one of `world_size` processes holds of the layers, if that is offloaded."""
        return sum(self._shards(world_size)) if self._shards_on_host and world_size > 1 else 0

    def _shards(self, world_size: int) -> list[int]:
        return [sum(shard_bytes(*matrix, world_size) for matrix in matrices) for matrices in self._matrices]

    def _step_bytes(self, max_length: int, options: ExecutionOptions) -> tuple[int, int]:
        """The peak of a step's own tensors in bytes, and the share of head and loss in it."""
        tokens = self._config.batch_size * max_length
        input_bytes = tokens * self.text.hidden_size * self.dtype.itemsize
        kept = self.layers - options.checkpointed_layers
        if kept and not options.compiled:
            peak, head_and_loss, per_layer = self._peak(max_length, checkpointed=False, compiled=False)
            peak -= options.checkpointed_layers * (per_layer - input_bytes)
        else:
            peak, head_and_loss, per_layer = self._peak(max_length, checkpointed=True, compiled=options.compiled)
            # IN_FLIGHT layers may still be copied out while the last but one runs; the last has kept nothing yet
            away = max(0, options.offloaded_layers - (IN_FLIGHT - 1))
            # the step has counted the layer that runs already
            activations = activation_bytes(self.text, tokens, self.dtype.itemsize)
            peak += max(0, kept - away - 1) * (activations - per_layer)
            peak -= away * per_layer
        if options.offload_checkpoints:
            peak -= max(0, options.checkpointed_layers - IN_FLIGHT) * input_bytes
        if options.keep_attention:
            attention = attention_bytes(self.text, tokens, self.dtype.itemsize)
            peak += min(options.checkpointed_layers, IN_FLIGHT) * attention
        return peak, head_and_loss

    def _peak(self, max_length: int, *, checkpointed: bool, compiled: bool) -> tuple[int, int, int]:
        """The peak of a step in bytes, the share of head and loss in it, and what one more layer adds.

        Decoder layers are alike and each keeps the same, so two and three layers define a straight line. The result is
        cached: other options differ by arithmetic only.
        """
        key = (*self._steps, max_length, checkpointed, compiled)
        if key not in _PEAKS:
            few = min(2, self.layers)
            peak, head_and_loss = self.run_layers(max_length, few, checkpointed=checkpointed, compiled=compiled)
            per_layer = 0
            if self.layers > few:
                more, head_and_loss = self.run_layers(max_length, few + 1, checkpointed=checkpointed, compiled=compiled)
                per_layer = more - peak
            _PEAKS[key] = peak + (self.layers - few) * per_layer, head_and_loss, per_layer
        return _PEAKS[key]

    def run_layers(self, max_length: int, layers: int, *, checkpointed: bool, compiled: bool) -> tuple[int, int]:
        """Run a step of the decoder's first layers; return its peak in bytes, and the share of head and loss in it."""
        decoder = self._decoder
        all_layers, rotary = decoder.layers, getattr(decoder, "rotary_emb", None)
        decoder.layers = all_layers[:layers]
        options = ExecutionOptions(varlen_attention=self._varlen, checkpointed_layers=layers * checkpointed)
        apply_options(options, self.model, max_length)
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
                layer.__dict__.pop("forward", None)  # what `apply_options` set
            decoder.layers = all_layers
            if rotary is not None:
                decoder.rotary_emb = rotary
        return tracker.peak, tracker.part_at_peak

    def _loss(self, tracker: AllocationTracker, max_length: int) -> Tensor:
        # the same as training.objective.summed_loss, which cannot choose its mask without a GPU
        windows = self._config.batch_size
        ids = torch.zeros(windows, max_length, dtype=torch.int64, device="meta")
        mask: dict[str, Any]
        if self._varlen:
            edges = torch.zeros(windows * 2 + 1, dtype=torch.int32, device="meta")
            mask = {"cu_seq_lens_q": edges, "max_length_q": max_length}
        else:
            mask = {"attention_mask": torch.zeros(windows, 1, max_length, max_length, dtype=torch.bool, device="meta")}
        hidden = self._decoder(input_ids=ids, position_ids=ids, use_cache=False, **mask).last_hidden_state
        head = self.model.get_output_embeddings()
        targets = ids.flatten()
        chosen, bias = hidden.flatten(0, 1).index_select(0, targets), getattr(head, "bias", None)
        with tracker.part():
            if self._config.keep_weight:
                # a kept pass takes more than a pass of the data: it has the base's states and both models' logits
                return head_divergence(chosen, torch.empty_like(chosen), head.weight, bias, targets >= 0)
            return head_loss(chosen, head.weight, bias, targets)
