"""The device of the work, and how much memory it has left."""

from __future__ import annotations

import os
from typing import Literal

import psutil
import torch

from aegis.doctor.gpu import torch_build
from aegis.errors import EnvironmentFault

DeviceName = Literal["auto", "cuda", "cpu"]


def choose_device(wanted: DeviceName) -> torch.device:
    """Pick the device, or refuse one that is not there; each process that a launcher started has a GPU of its own.

    Raises:
        EnvironmentFault: "cuda" was asked for and torch sees none, or fewer than there are processes.
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
    """`choose_device` for long work: "auto" does not settle for the CPU beside a GPU that the driver sees.

    "cpu" means the CPU, and so does a CUDA_VISIBLE_DEVICES that hides every GPU.

    Raises:
        EnvironmentFault: as `choose_device`; or torch does not use the GPU, with the command that cures it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if wanted == "auto" and not hidden and not torch.cuda.is_available():
        build = torch_build()[0]
        if build.state == "fail":
            raise EnvironmentFault("load.idle_gpu", build=build.detail, cure=build.cure)
    return choose_device(wanted)


def find_device(wanted: DeviceName) -> torch.device | None:
    """`require_device` for a plan: None for a GPU that was asked for and is not in this machine."""
    if wanted == "cuda" and not torch.cuda.is_available():
        return None
    return require_device(wanted)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take of a device's memory: of a GPU within its cap, of a CPU the host's."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(int(free), allowed - torch.cuda.memory_reserved(device))
