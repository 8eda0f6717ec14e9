"""Estimates the disk space and the memory that verify needs."""

from __future__ import annotations

from pathlib import Path

import torch

from aegis.config.settings import VerifyConfig
from aegis.model.base import Base
from aegis.model.device import find_device, free_bytes
from aegis.model.empty_model import empty_model
from aegis.runs import disk
from aegis.runs.space_needs import Need, NeedName


def scratch_needed(
    config: VerifyConfig, run: Path, models: int, vocabulary: int, rebuilt_bytes: int, *, keeps: bool
) -> Need:
    """Estimate the disk space in a run for float32 logits of every model and of the base, and for a second f16 file.

    The f16 file has `rebuilt_bytes`. Base and result also have logits on other text, and on kept text if there is any.
    """
    recordings = models + 1 + (4 if keeps else 2) + config.compare_bases
    needed = recordings * config.tokens * vocabulary * 4 + rebuilt_bytes
    return Need("disk_scratch", needed, disk.free_bytes(run), str(run))


def merged_shapes(base: Base) -> list[tuple[int, ...]]:
    """Return the shapes of the merged folder's tensors, by config.json alone; merge unties the LM head."""
    model = empty_model(base.folder, dtype=torch.float16)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    return [*shapes, tuple(model.get_input_embeddings().weight.shape)] if base.tied else shapes


def memory_needed(config: VerifyConfig, weights: int) -> Need:
    """Estimate the memory for one model: float16 on a GPU, float32 on a CPU.

    llama.cpp does not count: it maps its files, and the system can drop mapped pages.
    """
    device = find_device(config.device)
    on_gpu = device is None or device.type == "cuda"
    name: NeedName = "gpu_memory_verify" if on_gpu else "ram_verify"
    width = 2 if on_gpu else 4
    return Need(name, width * weights, free_bytes(device) if device else None)
