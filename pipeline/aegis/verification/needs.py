"""The disk and the memory that verify takes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from aegis.config.settings import VerifyConfig
from aegis.model.device import find_device, free_bytes
from aegis.runs import disk
from aegis.runs.disk import gguf_bytes
from aegis.runs.needs import Need, NeedName


def scratch_needed(config: VerifyConfig, models: int, vocabulary: int, rebuilt_weights: int, *, keeps: bool) -> Need:
    """Float32 logits of every model and of the base, and the f16 file that is converted again.

    Base and result have other text too, and kept text if there is any.
    """
    place = tempfile.gettempdir()
    recordings = models + 1 + (4 if keeps else 2) + config.compare_bases
    needed = recordings * config.tokens * vocabulary * 4 + gguf_bytes(rebuilt_weights, ["F16"])
    return Need("disk_scratch", needed, disk.free_bytes(Path(place)), place)


def memory_needed(config: VerifyConfig, weights: int) -> Need:
    """A whole model: float16 on a GPU, float32 on a CPU; llama.cpp maps its files, which can leave memory again."""
    device = find_device(config.device)
    on_gpu = device is None or device.type == "cuda"
    name: NeedName = "gpu_memory_verify" if on_gpu else "ram_verify"
    width = 2 if on_gpu else 4
    return Need(name, width * weights, free_bytes(device) if device else None)
