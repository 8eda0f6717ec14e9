"""Probes of the NVIDIA card through the driver's own library, and of whether torch can use the card."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from aegis.doctor.cures import install, install_torch_for_card
from aegis.doctor.finding import WINDOWS, Finding, gigabytes
from aegis.messages import phrase

MIN_FREE_BYTES = 4e9
"""Memory for the target base with the default settings: 2.6 GiB, and CUDA's own overhead."""

_NVIDIA, _DISPLAY = "0x10de", "0x03"
_DRIVERS = "https://www.nvidia.com/drivers"
_BUILDS_CUDA = (13, 0)


@dataclass(frozen=True)
class Card:
    """One GPU by the driver's data; `holders` has each process's name and id, and its bytes if they are known."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    holders: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Driver:
    """The driver's version, the newest CUDA version that it supports, and its cards."""

    version: str
    cuda: tuple[int, int]
    cards: tuple[Card, ...]


@cache
def seen_by_driver() -> Driver | None:
    """Ask NVML, which comes with every NVIDIA driver on Linux, WSL and Windows; None if there is no driver."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no library, no driver loaded, or a driver of another version than the library
        return None
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return Driver(
            str(nvml.nvmlSystemGetDriverVersion()),
            (cuda // 1000, cuda % 1000 // 10),
            tuple(map(_card, handles)),
        )
    finally:
        nvml.nvmlShutdown()


def _card(handle: object) -> Card:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    running = []
    for list_processes in (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    ):
        try:
            running += list_processes(handle)
        except pynvml.NVMLError:  # WSL has no such list
            continue
    taken = {process.pid: process.usedGpuMemory for process in running}
    held = sorted(taken.items(), key=lambda item: -(item[1] or 0))
    return Card(
        str(pynvml.nvmlDeviceGetName(handle)),
        tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        int(memory.total),
        int(memory.free),
        tuple((f"{_process_name(pid)} ({pid})", used) for pid, used in held),
    )


def _process_name(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return phrase("doctor.a_process")


def _without_driver() -> bool:
    """Whether the PCI bus has an NVIDIA card without a driver; only Linux shows it."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            return True
    return False


def driver() -> list[Finding]:
    """Check the driver, and whether a card has none."""
    found = seen_by_driver()
    if found is not None:
        detail = phrase("doctor.driver", version=found.version, cuda=_dotted(found.cuda))
        return [Finding("driver", "ok", detail)]
    if _without_driver():
        by_ubuntu = Path("/usr/bin/ubuntu-drivers").exists()
        cure = "sudo ubuntu-drivers install" if by_ubuntu else phrase("doctor.install", what=_DRIVERS)
        return [Finding("driver", "fail", phrase("doctor.card_without_driver"), cure)]
    return [Finding("driver", "warn", phrase("doctor.no_card"), "aegis run --preset demo")]


def gpus_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")


def torch_build() -> list[Finding]:
    """Check whether torch's build is the one for the card."""
    import torch

    found, version, cuda = seen_by_driver(), str(torch.__version__), torch.version.cuda
    if cuda:
        build = phrase("doctor.cuda_build", version=version, cuda=cuda)
    else:
        build = phrase("doctor.cpu_build", version=version)
    if found is None or not found.cards:
        return [Finding("torch", "ok", build)]
    if cuda is None:
        if found.cuda < _BUILDS_CUDA:
            newer = phrase("doctor.update_driver_first", drivers=_DRIVERS)
            return [Finding("torch", "fail", phrase("doctor.driver_too_old", build=build), newer)]
        beside = phrase("doctor.beside_card", build=build, card=found.cards[0].name)
        return [Finding("torch", "fail", beside, install_torch_for_card())]
    if torch.cuda.is_available():
        return [Finding("torch", "ok", build)]
    if gpus_hidden():
        unset = "set CUDA_VISIBLE_DEVICES=" if WINDOWS else "unset CUDA_VISIBLE_DEVICES"
        return [Finding("torch", "fail", phrase("doctor.card_hidden", build=build), unset)]
    major, minor = (int(part) for part in cuda.split(".")[:2])
    if found.cuda < (major, minor):
        detail = phrase("doctor.driver_runs", build=build, version=found.version, cuda=_dotted(found.cuda))
        return [Finding("torch", "fail", detail, phrase("doctor.update_driver", drivers=_DRIVERS))]
    return [Finding("torch", "fail", phrase("doctor.sees_no_card", build=build), phrase("doctor.restart"))]


def gpus() -> list[Finding]:
    """Check each card's compute capability and free memory, and list the processes that hold the rest."""
    import torch

    found = seen_by_driver()
    findings = []
    for card in found.cards if found else ():
        holders = ", ".join(name + (f" {gigabytes(used)}" if used else "") for name, used in card.holders[:3])
        detail = phrase(
            "doctor.card",
            name=card.name,
            capability=_dotted(card.capability),
            free=gigabytes(card.free_bytes),
            total=gigabytes(card.total_bytes),
            held=phrase("doctor.held_by", holders=holders) if holders else "",
        )
        built_for = torch.cuda.get_arch_list() if torch.cuda.is_available() else []
        if built_for and not _is_built_for(card.capability, built_for):
            unknown = phrase("doctor.no_code", card=detail)
            findings.append(Finding("gpu", "fail", unknown, "aegis train --device cpu"))
        elif card.free_bytes < MIN_FREE_BYTES:
            findings.append(Finding("gpu", "warn", detail, phrase("doctor.free_card")))
        elif card.capability < (8, 0):
            older = phrase("doctor.no_bfloat16", card=detail)
            findings.append(Finding("gpu", "warn", older, "aegis train --dry-run"))
        else:
            findings.append(Finding("gpu", "ok", detail))
    return findings


def _is_built_for(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether the list has code for the card: the same major version and no higher minor one, or any older PTX."""
    for name in built_for:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        major, minor = int(digits[:-1]), int(digits[-1])
        if (kind == "sm" and major == capability[0] and minor <= capability[1]) or (
            kind == "compute" and (major, minor) <= capability
        ):
            return True
    return False


def triton() -> list[Finding]:
    """Check Triton, the compiler that torch and bitsandbytes use on a card."""
    found = seen_by_driver()
    if found is None or not found.cards:
        return []
    name = "triton-windows" if sys.platform == "win32" else "triton"
    if find_spec("triton") is None:
        return [Finding("triton", "warn", phrase("doctor.no_triton"), install(name))]
    return [Finding("triton", "ok", metadata.version(name))]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
