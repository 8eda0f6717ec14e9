"""A base on the meta device: the modules, shapes and dtypes that training loads, without any weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aegis.model.empty_model import empty_model
from aegis.model.load import nf4_config, silence_dropout
from aegis.model.nf4_format import BLOCK, SECOND_BLOCK
from aegis.training.distributed.sharded_base import STORAGE
from aegis.training.planning.allocation_tracker import FourBitProduct


def meta_base(folder: Path, load_in: Literal["4bit", "16bit"], dtype: torch.dtype) -> Any:
    """Build the base as `model.load.load_base` does, frozen and on the meta device.

    Args:
        folder: only config.json is read.
        dtype: the dtype that training computes in.
    """
    from transformers.quantizers import AutoHfQuantizer

    model = empty_model(folder, dtype=dtype, attn_implementation="sdpa")
    if load_in == "4bit":
        with torch.device("meta"):
            quantizer = AutoHfQuantizer.from_config(nf4_config(dtype))
            quantizer.pre_quantized = False
            quantizer.preprocess_model(model=model, dtype=dtype, device_map=None)
            model.is_loaded_in_4bit = True
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state"):
            vars(module)["forward"] = partial(_four_bit_forward, module)
        if isinstance(getattr(module, "rope_type", None), str):
            # longrope and dynamic choose their factors by the values of the positions; the default has the same sizes
            vars(module)["rope_type"] = "default"
    silence_dropout(model)
    return model.requires_grad_(False)


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor as `model.load.footprint` counts them.

    NF4 takes half a byte per weight, one byte per block and four bytes per block of blocks.
    """
    if not hasattr(tensor, "quant_state"):
        return tensor.nbytes
    blocks = -(-tensor.numel() // BLOCK)
    return _code_bytes(tensor) + blocks + 4 * -(-blocks // SECOND_BLOCK)


def matrix_rows(tensor: Tensor) -> tuple[int, int]:
    """A matrix's bytes without the scales of NF4, and the number of rows that `distributed.sharded_base` shards."""
    size = _code_bytes(tensor)
    return size, size // STORAGE.itemsize if hasattr(tensor, "quant_state") else tensor.shape[0]


def _code_bytes(tensor: Tensor) -> int:
    return -(-tensor.numel() // 2) if hasattr(tensor, "quant_state") else tensor.nbytes


def _four_bit_forward(module: Any, x: Tensor) -> Tensor:
    product: Tensor = FourBitProduct.apply(x, module.weight, module.out_features, module.in_features)  # type: ignore[no-untyped-call]
    return product if module.bias is None else product + module.bias
