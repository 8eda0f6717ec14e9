"""Tests of the GPU's findings, with a stand-in for `pynvml` and a torch that reports what the test sets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aegis.doctor import gpu as card
from aegis.doctor.cures import install, install_torch_for_card
from aegis.doctor.finding import Finding

GB = 10**9


class NVMLError(Exception):
    pass


Nvml = Callable[..., None]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvml]:
    """Install a driver with one card, or no driver."""

    def install(
        *, there: bool = True, cuda: int = 13000, capability: tuple[int, int] = (8, 6), free: int = 11 * GB, **_: Any
    ) -> None:
        def init() -> None:
            if not there:
                raise NVMLError("Shared Library Not Found")

        def no_list(_handle: object) -> list[Any]:
            raise NVMLError("Not Supported")

        module = SimpleNamespace(
            NVMLError=NVMLError,
            nvmlInit=init,
            nvmlShutdown=lambda: None,
            nvmlSystemGetDriverVersion=lambda: "580.65",
            nvmlSystemGetCudaDriverVersion_v2=lambda: cuda,
            nvmlDeviceGetCount=lambda: 1,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetName=lambda _: "NVIDIA GeForce RTX 3060",
            nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=12 * GB, free=free),
            nvmlDeviceGetCudaComputeCapability=lambda _: capability,
            nvmlDeviceGetComputeRunningProcesses=lambda _: [SimpleNamespace(pid=2**22 + 1, usedGpuMemory=3 * GB)],
            nvmlDeviceGetGraphicsRunningProcesses=no_list,
        )
        monkeypatch.setitem(sys.modules, "pynvml", module)
        card.seen_by_driver.cache_clear()

    yield install
    card.seen_by_driver.cache_clear()


@pytest.fixture
def torch_sees(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def tell(cuda: str | None, available: bool, built_for: tuple[str, ...] = ("sm_75", "sm_80", "sm_86")) -> None:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built_for))

    return tell


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def test_every_called_function_is_in_nvidias_header() -> None:
    """The stand-in has the names of the real library, and the real one reports a missing driver."""
    import pynvml

    for name in (
        *("nvmlInit", "nvmlShutdown", "nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2"),
        *("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo"),
        *("nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetComputeRunningProcesses"),
        *("nvmlDeviceGetGraphicsRunningProcesses", "NVMLError"),
    ):
        assert hasattr(pynvml, name), name
    card.seen_by_driver.cache_clear()
    found = card.seen_by_driver()
    assert found is None or found.version


def test_a_sound_gpu_machine_passes(nvml: Nvml, torch_sees: Callable[..., None]) -> None:
    nvml()
    torch_sees("13.0", True)
    assert only(card.driver()) == Finding("driver", "ok", "NVIDIA 580.65, for CUDA up to 13.0")
    assert only(card.torch_build()).state == "ok"
    gpu = only(card.gpus())
    assert gpu.state == "ok"
    assert gpu.detail == (
        "NVIDIA GeForce RTX 3060, compute capability 8.6, 11.0 GB of 12.0 GB free; held by a process (4194305) 3.0 GB"
    )


def test_a_machine_without_a_gpu_gets_a_note_and_no_failure(
    nvml: Nvml, torch_sees: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "_without_driver", lambda: False)
    nvml(there=False)
    torch_sees(None, False)
    assert only(card.driver()).state == "warn"
    assert only(card.torch_build()).state == "ok"
    assert card.gpus() == card.triton() == []


def test_a_card_without_a_driver_is_reported(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "_without_driver", lambda: True)
    nvml(there=False)
    found = only(card.driver())
    assert (found.state, "no driver for it" in found.detail, bool(found.cure)) == ("fail", True, True)


def test_a_cpu_build_of_torch_on_a_machine_with_a_card_is_reported(nvml: Nvml, torch_sees: Callable[..., None]) -> None:
    """Found without torch's help, and the cure installs the build that fits the driver."""
    nvml()
    torch_sees(None, False)
    found = only(card.torch_build())
    assert found.state == "fail"
    assert "CPU-only build, on a machine with NVIDIA GeForce RTX 3060" in found.detail
    assert found.cure == install_torch_for_card()
    nvml(cuda=12040)
    assert only(card.torch_build()).cure.startswith("update the driver first")


@pytest.mark.parametrize(
    ("cuda", "hidden", "shown"),
    [
        (13000, "", "CUDA_VISIBLE_DEVICES hides the card"),
        (12040, None, "runs CUDA up to 12.4"),
        (13000, None, "sees no card"),
    ],
)
def test_a_cuda_build_that_sees_no_card_is_reported(
    nvml: Nvml,
    torch_sees: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    cuda: int,
    hidden: str | None,
    shown: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    nvml(cuda=cuda)
    torch_sees("13.0", False)
    found = only(card.torch_build())
    assert (found.state, shown in found.detail, bool(found.cure)) == ("fail", True, True), found


@pytest.mark.parametrize(
    ("capability", "free", "state", "shown"),
    [
        ((8, 6), 2 * GB, "warn", "2.0 GB of 12.0 GB free"),
        ((7, 5), 11 * GB, "warn", "no bfloat16"),
        ((6, 1), 11 * GB, "fail", "this torch has no code for this card"),
        ((8, 9), 11 * GB, "ok", "compute capability 8.9"),
    ],
)
def test_a_cards_capability_and_free_memory_are_judged(
    nvml: Nvml,
    torch_sees: Callable[..., None],
    capability: tuple[int, int],
    free: int,
    state: str,
    shown: str,
) -> None:
    nvml(capability=capability, free=free)
    torch_sees("13.0", True)
    found = only(card.gpus())
    assert (found.state, shown in found.detail, bool(found.cure)) == (state, True, state != "ok"), found


def test_a_card_newer_than_the_build_runs_its_ptx() -> None:
    assert card._is_built_for((12, 0), ["sm_90", "compute_90"])
    assert not card._is_built_for((12, 0), ["sm_90", "sm_90a"])


def test_a_missing_compiler_is_reported_with_its_command(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml()
    monkeypatch.setattr(card, "find_spec", lambda _: None)
    found = only(card.triton())
    assert (found.state, found.cure) == ("warn", install("triton"))
