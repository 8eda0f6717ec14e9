"""Chooses the device, and measures its free memory."""

from __future__ import annotations

import os
from typing import Literal

import psutil
import torch

from aegis.doctor.gpu import gpus_hidden, torch_build
from aegis.errors import EnvironmentFault

DeviceName = Literal["auto", "cuda", "cpu"]


def choose_device(wanted: DeviceName) -> torch.device:
    """Choose the device, or refuse one that does not exist; each process of a launcher gets its own GPU.

    Raises:
        EnvironmentFault: "cuda" is wanted, and torch sees no GPU, or fewer GPUs than there are processes.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            "load.cpu_only_torch" if torch.version.cuda is None else "load.no_driver", version=torch.__version__
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise EnvironmentFault("load.too_few_gpus", number=number, device_count=torch.cuda.device_count())
    return torch.device("cuda", number)


def require_device(wanted: DeviceName) -> torch.device:
    """Choose the device for long work: "auto" does not take the CPU while the driver sees a GPU.

    "cpu" means the CPU, and so does a CUDA_VISIBLE_DEVICES that hides every GPU.

    Raises:
        EnvironmentFault: as in `choose_device`; or torch cannot use the GPU, and the message has the command that
            mends it.
    """
    if wanted == "auto" and not gpus_hidden() and not torch.cuda.is_available():
        build = torch_build()[0]
        if build.state == "fail":
            raise EnvironmentFault("load.idle_gpu", build=build.detail, cure=build.cure)
    return choose_device(wanted)


def find_device(wanted: DeviceName) -> torch.device | None:
    """Choose as `require_device` does, for a plan: None for a GPU that is wanted and is not in this machine."""
    if wanted == "cuda" and not torch.cuda.is_available():
        return None
    return require_device(wanted)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process may still allocate: on a GPU within its cap, on a CPU in the host's memory."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(int(free), allowed - torch.cuda.memory_reserved(device))
