"""What the soul adds to a step, measured by itself: R built, forward and backward pass, gradient brought home, AdamW.

    PYTHONPATH=pipeline:.:tools python tools/bench_soul.py [--hidden-size 3072] [--lengths 512,2048,4096] [--out FILE]

One micro-batch a step, as a CUDA graph like `aegis train`'s own; the median of several replays. Beside it the largest
error of the gradient on the parameter, against the same in float64 throughout, and by how much another's misses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.model.cuda_graphs import GraphRecorder, own_stream
from aegis.runs.manifest import versions
from aegis.soul import rotation as so
from aegis.soul.kind import Kind
from aegis.soul.module import Soul

REPLAYS = 20


def whole_step(soul: Soul, optimizer: torch.optim.Optimizer, hidden: Tensor, outer: Tensor) -> Callable[[], None]:
    """The soul's part of an optimizer step of one micro-batch."""

    def run() -> None:
        soul.skew.grad.zero_()  # type: ignore[union-attr]
        soul.cache_rotation()
        soul(hidden).backward(outer)
        soul.release()
        optimizer.step()
        soul.retract()

    return run


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Median milliseconds."""
    times = []
    if device.type == "cuda":
        with own_stream(device):
            for _ in range(3):
                run()
            replay = GraphRecorder().record(run)
            for _ in range(REPLAYS):
                before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                before.record()
                replay()
                after.record()
                after.synchronize()
                times.append(before.elapsed_time(after))
    else:
        for _ in range(3):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def gradient_error(soul: Soul, hidden: Tensor, outer: Tensor) -> dict[str, float]:
    """‖ours − float64's‖ / ‖float64's‖ of the parameter's gradient; the control's outer gradient is another one."""

    def exactly(outer: Tensor) -> Tensor:
        entries = soul.skew.detach().double().requires_grad_()
        mapped = torch.linalg.matrix_exp(so.skew_matrix(entries, soul.start.shape[-1]))
        wide = hidden.detach().double()
        mixed = wide + torch.sigmoid(soul.alpha.double()) * so.apply_rotation(soul.start.double() @ mapped, wide)
        (found,) = torch.autograd.grad(mixed, entries, outer.double())
        return found

    soul.skew.grad = torch.zeros_like(soul.skew)
    soul.cache_rotation()
    soul(hidden).backward(outer)
    soul.release()
    ours, wanted = soul.skew.grad.double(), exactly(outer)
    missed = exactly(outer.roll(1, -1))
    return {
        "gradient_error": ((ours - wanted).norm() / wanted.norm()).item(),
        "control": ((missed - wanted).norm() / wanted.norm()).item(),
    }


def measure(kind: Kind, hidden_size: int, length: int, device: torch.device) -> dict[str, Any]:
    """One row of the table."""
    soul = Soul(hidden_size, kind=kind, init="random", seed=1, alpha=1.0).to(device)
    if kind == "so8":  # as it is in the middle of a training; a dense soul's skew is zero then
        with torch.no_grad():
            soul.skew.normal_(0, 1e-2, generator=torch.Generator(device).manual_seed(0))
    generator = torch.Generator(device).manual_seed(1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden, outer = (
        torch.randn(1, length, hidden_size, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    hidden.requires_grad_()
    errors = gradient_error(soul, hidden, outer)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW([soul.skew], lr=1e-6, weight_decay=0.0, fused=True, capturable=on_gpu)
    return {"kind": kind, "length": length, "ms": timed(whole_step(soul, optimizer, hidden, outer), device), **errors}


def main() -> int:
    """Measure every kind at every length and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=3072)
    parser.add_argument("--lengths", default="512,2048,4096")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    kinds: tuple[Kind, ...] = ("so8", "dense")
    lengths = [int(length) for length in arguments.lengths.split(",")]
    rows = [measure(kind, arguments.hidden_size, length, device) for kind in kinds for length in lengths]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    if arguments.out:
        results = {"versions": versions(), "device": name, "rows": rows}
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(name)
    for row in rows:
        print(
            f"{row['kind']:<6} {row['length']:>5} tokens {row['ms']:>9.2f} ms"
            f"   gradient off by {row['gradient_error']:.1e}, another's by {row['control']:.1e}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
