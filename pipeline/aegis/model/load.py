"""Loads the base into memory: NF4 or 16 bit, on a GPU or a CPU, with transformers' native class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from aegis import progress
from aegis.errors import AegisError, EnvironmentFault, IntegrityError, UnsupportedModelError, UsageError, first_line
from aegis.messages import phrase
from aegis.model.empty_model import empty_model
from aegis.model.nf4_format import BLOCK, quant_state_of
from aegis.runs.facts import DtypeName

Precision = Literal["4bit", "16bit", "dequantized"]
"""The base's precision in memory: NF4, 16 bit, or 16 bit after a round trip through NF4."""


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the GPU supports it, float16 on older GPUs, and float32 on a CPU, where 16 bit is slower."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """Return the name of training's compute dtype, as a manifest records it."""
    names: dict[torch.dtype, DtypeName] = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    }
    return names[dtype]


def load_base(folder: Path, load_in: Precision, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Load the base, frozen, in the given precision; "4bit" is NF4 with double quantization.

    "dequantized" quantizes in training's own dtype, lets bitsandbytes dequantize, and casts the result to `dtype`.

    Nothing is cast to float32: peft's prepare_model_for_kbit_training would cast embeddings, norms and head, and with
    them the residual stream (at 3.8 B parameters 0.4 GB more, and 1.6 times the activations).

    Args:
        dtype: the dtype to compute in; `compute_dtype(device)` if None.

    Returns:
        A transformers …ForCausalLM on `device`.

    Raises:
        EnvironmentFault: it does not fit the memory.
        IntegrityError: transformers cannot read the weights.
    """
    dtype = dtype or compute_dtype(device)
    if load_in == "dequantized":
        model = load_base(folder, "4bit", device)
        return model.dequantize(dtype).to(dtype).requires_grad_(False)
    quantization = nf4_config(dtype) if load_in == "4bit" else None
    return _from_pretrained(folder, dtype, {"": device}, quantization_config=quantization)


def load_offloaded(folder: Path, device: torch.device, scratch: Path) -> Any:
    """Load the base in 16 bit with its layers on disk: each layer's weights come to `device` while it runs.

    Args:
        scratch: an empty folder for weights that accelerate cannot read from the shards.

    Returns:
        A model like that of `load_base`, for passes without gradients.

    Raises:
        EnvironmentFault, IntegrityError: as in `load_base`.
    """
    empty = empty_model(folder)
    layers = empty.get_decoder().layers
    inside = {id(module) for module in layers.modules()}
    leaves = {
        name: str(device)
        for name, m in empty.named_modules()
        if id(m) not in inside and not any(True for _ in m.children())
    }
    (stack,) = (name for name, module in empty.named_modules() if module is layers)
    on_disk = {f"{stack}.{number}": "disk" for number in range(len(layers))}
    return _from_pretrained(folder, compute_dtype(device), leaves | on_disk, offload_folder=str(scratch))


def _from_pretrained(folder: Path, dtype: torch.dtype, device_map: Mapping[str, Any], **options: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would break into our own
    try:
        with progress.task(phrase("load.loading")):
            model, outcome = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map=device_map,
                attn_implementation="sdpa",
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except BrokenPipeError:  # the reader of our progress output ended; the base is not at fault
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EnvironmentFault("load.out_of_memory", error=first_line(error)) from error
    except AegisError:
        raise
    except Exception as error:  # transformers can raise anything for a bad config or bad weights
        empty_model(folder)  # raises the better message if config.json alone is the cause
        raise IntegrityError("load.not_loaded", folder=folder, error=first_line(error)) from error
    if missing := sorted(outcome["missing_keys"]):
        # transformers fills these with random numbers and logs it
        raise IntegrityError(
            "load.missing_tensors", folder=folder, missing_count=len(missing), missing=", ".join(missing[:5])
        )
    model.requires_grad_(False)
    model.config.use_cache = False
    for module in model.modules():
        # with AVX512-BF16, bitsandbytes repacks a CPU weight permanently at the first forward pass in eval mode, for a
        # kernel that computes in bfloat16 and has no backward: after an evaluation, training would have wrong gradients
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if model.get_output_embeddings() is None:
        raise UsageError("load.no_head", name=type(model).__name__)
    return model


def silence_dropout(model: torch.nn.Module) -> None:
    """Switch off the base's own dropout: it is frozen, and only the adapter has dropout in training."""
    module: Any
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def nf4_weights(folder: Path) -> frozenset[str]:
    """Return the names of the weights that `load_base` holds in NF4; only config.json is read.

    Raises:
        UnsupportedModelError: there are none, or the rows of one are not divisible into blocks.
    """
    from bitsandbytes.nn import Linear4bit
    from transformers.quantizers import AutoHfQuantizer

    model = empty_model(folder)
    # from_pretrained makes the same choice
    AutoHfQuantizer.from_config(nf4_config(torch.float32)).preprocess_model(model=model, device_map=None)
    found = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    if not found:
        raise UnsupportedModelError("load.nothing_in_nf4", folder=folder)
    if odd := [name for name, module in found.items() if module.in_features % BLOCK]:
        raise UnsupportedModelError("load.odd_rows", odd=odd[0], block=BLOCK)
    return frozenset(f"{name}.weight" for name in found)


def nf4_config(dtype: torch.dtype) -> Any:
    """Return transformers' config for NF4 with double quantization; the whole program uses this one.

    Args:
        dtype: the dtype that products are computed in.
    """
    from transformers import BitsAndBytesConfig

    # transformers' default list of skipped modules has the LM head; a list of our own would replace it
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def footprint(model: torch.nn.Module, device: torch.device | None = None) -> int:
    """Return the bytes of a model's parameters and buffers in memory, NF4's constants included.

    Args:
        device: count only what is on this device; None counts all.
    """
    total = 0
    tensors = [*model.parameters(), *model.buffers()]
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    for state in [state for module in leaves if (state := quant_state_of(module)) is not None]:
        tensors += [state.absmax, state.state2.absmax] if state.nested else [state.absmax]
    for tensor in tensors:
        if device is None or tensor.device.type == device.type:
            # a sharded parameter counts with what this process holds
            total += tensor.to_local().untyped_storage().nbytes() if hasattr(tensor, "to_local") else tensor.nbytes
    return total
