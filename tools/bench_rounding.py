"""What rounding to a type of llama.cpp costs on this device, and how near it comes to llama.cpp's own rounding.

    PYTHONPATH=pipeline:.:tools python tools/bench_rounding.py [--weights 201326592] [--device cuda] [--out FILE]

Per type and way (Triton's kernel, torch): milliseconds per 10⁹ weights, the median of several runs over one weight of
the given size; beside it the error as a multiple of llama.cpp's and the share of values that are equal to its, on a
normal weight and on one with heavy tails. The control is another type's error as a multiple of llama.cpp's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.model.rounding.in_torch import TORCH_TYPES, round_in_torch
from aegis.model.rounding.on_cpu import round_on_cpu
from aegis.runs.manifest import versions

COLUMNS = 3072
SAMPLE_ROWS = 512
"""Rows that llama.cpp rounds for the comparison."""

Way = Callable[[Tensor, str], Tensor]


def ways(device: torch.device, type_name: str) -> dict[str, Way]:
    """The ways to round to a type on a device, by name."""
    found: dict[str, Way] = {"torch": round_in_torch}
    if device.type == "cuda" and find_spec("triton") is not None:
        from aegis.model.rounding.in_triton import TRITON_TYPES, round_in_triton

        if type_name in TRITON_TYPES:
            found = {"triton": round_in_triton, **found}
    return found


def samples(device: torch.device) -> dict[str, Tensor]:
    """A normal weight, and one of Student's t with 2 degrees of freedom."""
    generator = torch.Generator().manual_seed(1)
    normal, other = torch.randn(2, SAMPLE_ROWS, COLUMNS, generator=generator)
    length = torch.rand(SAMPLE_ROWS, COLUMNS, generator=generator).clamp_(min=1e-6).log_().neg_().sqrt_()
    return {"normal": (normal * 0.02).to(device), "tails": (other / length * 0.02).to(device)}


def cost(way: Way, weight: Tensor, type_name: str, runs: int) -> dict[str, float]:
    """Median time of one rounding of the weight, per 10⁹ weights, and the GPU's memory beside weight and result."""
    times = []
    before = torch.cuda.memory_allocated() if weight.is_cuda else 0
    for _ in range(runs + 1):  # the first compiles
        if weight.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        way(weight, type_name)
        if weight.is_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    peak = torch.cuda.max_memory_allocated() - before - 4 * weight.numel() if weight.is_cuda else 0
    return {"ms": statistics.median(times[1:]) * 1e9 / weight.numel(), "mib": peak / 2**20}


def nearness(way: Way, values: Tensor, type_name: str) -> dict[str, float]:
    """The error as a multiple of llama.cpp's, the share of equal values, and the control."""
    theirs = round_on_cpu(values.cpu(), type_name).to(values.device)
    found = way(values, type_name)
    another = way(values, "Q4_0" if type_name == "Q8_0" else "Q8_0")
    error, wanted, control = ((one - values).double().norm() for one in (found, theirs, another))
    near = 1e-6 * theirs.view(-1, 32).abs().amax(1, keepdim=True)
    equal = ((found - theirs).view(-1, 32).abs() <= near).double().mean().item()
    return {"error": (error / wanted).item(), "equal": equal, "control": (control / wanted).item()}


def main() -> int:
    """Measure every type in every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=65536 * COLUMNS, help="size of the weight that is timed")
    parser.add_argument("--types", default=",".join(TORCH_TYPES[1:]), help="all but F32, which changes nothing")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    weight = torch.randn(max(1, arguments.weights // COLUMNS), COLUMNS, device=device) * 0.02
    compared = samples(device)
    rows: list[dict[str, Any]] = []
    for type_name in arguments.types.split(","):
        for name, way in ways(device, type_name).items():
            spent = cost(way, weight, type_name, arguments.runs if name == "triton" else 2)
            near = {case: nearness(way, values, type_name) for case, values in compared.items()}
            rows.append({"type": type_name, "way": name, **spent, **near})
            figures = "   ".join(
                f"{case} {one['error']:.5f} of the error, {one['equal']:.2%} equal, control {one['control']:.3f}"
                for case, one in near.items()
            )
            print(
                f"{type_name:<5} {name:<7} {spent['ms']:>10.2f} ms per 10⁹   {spent['mib']:>5.0f} MiB   {figures}",
                flush=True,
            )
    if arguments.out:
        results = {"versions": versions(), "device": torch.cuda.get_device_name() if weight.is_cuda else "CPU"}
        results |= {"weights": weight.numel(), "rows": rows}
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
