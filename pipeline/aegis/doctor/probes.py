"""Runs all probes in order; an exception in a probe is a finding too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from aegis.doctor import gpu, installation, kernel, llama, machine, services
from aegis.doctor.cures import set_up_again
from aegis.doctor.finding import Finding, Name
from aegis.messages import phrase

Probe = Callable[[], list[Finding]]

PROBES: tuple[tuple[Name, Probe], ...] = (
    ("python", installation.python),
    ("set_up", installation.set_up),
    ("packages", installation.packages),
    ("driver", gpu.driver),
    ("torch", gpu.torch_build),
    ("gpu", gpu.gpus),
    ("triton", gpu.triton),
    ("kernel", kernel.smoke),
    ("memory", machine.memory),
    ("disk", machine.disks),
    ("paths", machine.paths),
    ("console", machine.console),
    ("hub", services.hub),
    ("converter", llama.converter),
    ("llama_cpp", llama.binding),
    ("ollama", services.ollama),
)


def examine(advance: Callable[[], object] = lambda: None) -> Iterator[Finding]:
    """Run every probe, and yield each finding at once; `advance` is called after each probe, which may have several."""
    for name, probe in PROBES:
        try:
            yield from probe()
        except ImportError as error:
            yield Finding(name, "fail", phrase("doctor.not_looked_at", why=error), set_up_again())
        except Exception as error:  # an incomplete library can raise anything
            why = f"{type(error).__name__}: {error}"
            yield Finding(name, "fail", phrase("doctor.not_looked_at", why=why), set_up_again())
        advance()


def is_ready(findings: list[Finding]) -> bool:
    """Whether no finding prevents a run."""
    return all(finding.state != "fail" for finding in findings)
