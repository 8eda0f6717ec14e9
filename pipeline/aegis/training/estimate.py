"""How much memory a training would take, worked out before it: no weights are read, nothing is allocated.

    peak = weights + adapter + soul + optimizer + workspace      from shapes
         + gradients + activations + head and loss               from a step on tensors without data (`ledger`)

The step is the real one: transformers' own decoder, peft's own LoRA on bitsandbytes' own modules, the recomputation,
the soul, the chunked loss. Only its kernels are stood in for. Against an NVIDIA H200 at Phi-3.5-mini's shape it was
0.4 to 2.5 % low (tests/training/test_estimate.py has the numbers); compiled or captured steps would differ from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aegis.config import TrainConfig
from aegis.model.attach import attached, decoder_of
from aegis.model.lora import Coverage, attach_lora, coverage, resolve_targets
from aegis.soul.module import Soul
from aegis.training.ledger import FourBitProduct, Ledger, as_on_gpu
from aegis.training.loss import head_loss

NF4_BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share an 8-bit scale, and scales that share a float32 one (Dettmers et al. 2023, arXiv:2305.14314)."""

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


class Blueprint:
    """A base with an adapter and a soul as a config wants them, in shapes only.

    Args:
        folder: config.json is all that is read.
        device: "cpu" computes in float32, "cuda" in 16 bit.
        capability: of the GPU; its cuBLAS workspace depends on it.

    Attributes:
        parameters: of the base.
        matrix_parameters: of its linear layers and its LM head, each once for every token.
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
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = _meta_base(folder, config.load_in, dtype)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.matrix_parameters = sum(
            m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)
        )
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        self._weights = sum(_stored_bytes(tensor) for tensor in [*model.parameters(), *model.buffers()])
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
        learned = config.alpha != "scheduled"
        rotation_map = config.rotation_map
        if rotation_map == "auto":
            rotation_map = "exp" if config.rotation == "so8" else "cayley"
        width = self.model.config.get_text_config().hidden_size
        self.soul = Soul(width, kind=config.rotation, init="identity", map_=rotation_map, alpha_is_learned=learned)
        self.soul.to("meta")
        self._adapter = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = {
            "adapter": sum(p.numel() for p in self._adapter),
            "soul": sum(p.numel() for p in self.soul.parameters() if p.requires_grad),
        }
        self._config = config
        self._workspace = (
            0 if device == "cpu" else _CUBLAS_BYTES["hopper" if capability and capability >= (9, 0) else "older"]
        )

    def estimate(self, max_length: int, *, recompute: bool) -> Estimate:
        """Estimate for windows of `max_length` tokens, activations kept or recomputed in the backward pass.

        The windows are taken to hold several documents or padding, which takes a mask of (tokens, tokens).
        """
        _recompute(self.model, recompute)
        trained = [*self._adapter, *(p for p in self.soul.parameters() if p.requires_grad)]
        known = [*self.model.parameters(), *self.model.buffers(), *self.soul.parameters(), *self.soul.buffers()]
        ledger = Ledger(known)
        try:
            with attached(self.model, self.soul), ledger, as_on_gpu():
                for _ in range(min(2, self._config.gradient_accumulation_steps)):
                    self._loss(ledger, max_length).backward()
                self.soul.orthogonality_loss().backward()
        finally:
            for parameter in trained:
                parameter.grad = None
        gradients = sum(p.nbytes for p in trained)
        return Estimate(
            weights=self._weights,
            adapter=sum(p.nbytes for p in self._adapter),
            soul=sum(tensor.nbytes for tensor in [*self.soul.parameters(), *self.soul.buffers()]),
            gradients=gradients,
            optimizer=2 * gradients,
            activations=max(0, ledger.peak - ledger.part_at_peak - gradients),
            head_and_loss=ledger.part_at_peak,
            workspace=self._workspace,
        )

    def _loss(self, ledger: Ledger, max_length: int) -> Tensor:
        # as training.step.summed_loss, which looks at the values of the positions to find the documents
        windows = self._config.batch_size
        ids = torch.zeros(windows, max_length, dtype=torch.int64, device="meta")
        mask = torch.zeros(windows, 1, max_length, max_length, dtype=torch.bool, device="meta")
        hidden = decoder_of(self.model)(
            input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        head = self.model.get_output_embeddings()
        targets = ids.flatten()
        with ledger.part():
            return head_loss(hidden.flatten(0, 1)[targets], head.weight, getattr(head, "bias", None), targets)


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


def _recompute(model: Any, wanted: bool) -> None:
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before transformers 5.20
    if wanted:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


def _four_bit_forward(module: Any, x: Tensor) -> Tensor:
    product: Tensor = FourBitProduct.apply(x, module.weight, module.out_features, module.in_features)  # type: ignore[no-untyped-call]
    return product if module.bias is None else product + module.bias


def _is_four_bit(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")


def _stored_bytes(tensor: Tensor) -> int:
    """As `model.load.footprint` counts: for NF4 half a byte a weight, a byte a block, four bytes a block of blocks."""
    if not hasattr(tensor, "quant_state"):
        return tensor.nbytes
    blocks = -(-tensor.numel() // NF4_BLOCK)
    return -(-tensor.numel() // 2) + blocks + 4 * -(-blocks // NESTED_BLOCK)
