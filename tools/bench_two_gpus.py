"""One training on two GPUs beside one: speed, memory, a sharded base, a killed process, the bits of many processes.

    PYTHONPATH=pipeline:.:tools python tools/bench_two_gpus.py --template FOLDER [--parts speed,sharded] [--out FILE]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes of
Phi-3.5-mini. Every run is `aegis train` in processes of its own, through torchrun where it takes two; NVLink multicast
stays off. Losses of runs that should agree are compared with those one logging interval later, which should not. A part
that fails prints its traceback, and the next part runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import same_steps
import torch
from bench_train import write_long
from full_size import copy_template, meta_model, write_base
from two_gpu_runs import Bench, OutOfTimeError, copied, gap, kill_second, losses, newest_step, rows, speed_of, stop

from aegis.runs.manifest import versions
from aegis.runs.run import Run

LOGGING_STEPS = 5
GOALS = {"two GPUs : one": 1.9, "sharded : whole": 0.6}
KILLED_MESSAGE = "another process of this training ended"


class Comparison:
    """Runs of the bench, and what was found of them."""

    def __init__(self, bench: Bench, steps: int, same: dict[str, Any], processes: int) -> None:
        self._bench, self._steps, self._same, self._processes = bench, steps, same, processes
        self.checks: dict[str, bool] = {}
        self.gaps: dict[str, tuple[float | None, float | None]] = {}
        self.ratios: dict[str, float] = {}
        self.runs: dict[str, Any] = {}
        self.same_bits: dict[str, Any] = {}

    def speed(self) -> None:
        """Two processes beside one at the same global batch."""
        one, two = self._kept("one", 1), self._kept("two", 2)
        self._faster("two GPUs : one", two, one)
        self._compare("one GPU and two", one, two)

    def sharded(self) -> None:
        """Each of two processes holds a shard of the base's layers."""
        whole, sharded = self._kept("two", 2), self._kept("sharded", 2, shard_base=True)
        self._faster("sharded : whole", sharded, whole)
        held = [(self.runs[name].get("memory") or {}).get("base") for name in ("sharded", "two")]
        if all(held):
            self.ratios["base of a process, sharded : whole"] = held[0] / held[1]
        self._compare("sharded and whole", sharded, whole)

    def offloaded(self) -> None:
        """The shards wait in the host's memory."""
        sharded = self._kept("sharded", 2, shard_base=True)
        offloaded = self._kept("offloaded", 2, shard_base=True, shard_offload=True)
        self._faster("offloaded : sharded", offloaded, sharded)
        self._compare("offloaded and sharded", offloaded, sharded)

    def resume(self) -> None:
        """One of two processes is killed after a checkpoint; one process goes on and is stopped; two go on."""
        two, run = self._kept("two", 2), Run(self._bench.work / "killed")
        half = self._steps // 2
        ended = self._bench.train(2, run, meanwhile=kill_second(half + LOGGING_STEPS))
        self.runs["killed"] = {"seconds": ended.seconds, "output": ended.output[-2000:]}
        self.checks["a killed process ends the run"] = ended.code not in (0, -1)
        self.checks["and the other one says so"] = KILLED_MESSAGE in ended.output
        self.checks["the checkpoint is whole"] = newest_step(run) == half
        alone = copied(run, Run(self._bench.work / "then-one"))
        # far behind the kill, whose last rows the copy still has
        ended = self._bench.train(1, alone, "--resume", meanwhile=stop(self._steps - 3 * LOGGING_STEPS))
        self.checks["one process goes on, and is stopped"] = ended.code == 130 and (newest_step(alone) or 0) > half
        again = copied(alone, Run(self._bench.work / "then-two"))
        self.checks["two processes go on to the end"] = self._bench.train(2, again, "--resume").code == 0
        self._compare("two, one, two", again, two)

    def same(self) -> None:
        """Many processes take the same compiled steps."""
        gpus = 2 if self._bench.on_gpu else 1
        found = same_steps.compare(self._bench, self._same, self._processes, gpus)
        self.same_bits = found
        control = {end["hash"] for end in found["control"]}
        self.checks["with kept choices all end with the same bits"] = len(found["kept_groups"]) == 1
        self.checks["another seed ends with other bits"] = not control & {end["hash"] for end in found["kept"]}

    def _kept(self, name: str, processes: int, **other: Any) -> Run:
        run = Run(self._bench.work / name)
        if name not in self.runs:
            ended = self._bench.train(processes, run, **other)
            self.checks[f"{name}: ends well"] = ended.code == 0
            self.runs[name] = {
                "seconds": ended.seconds,
                "tokens_per_second": speed_of(run),
                "peak_gib_of_process_0": round(
                    max((row["peak_bytes"] or 0 for row in rows(run)), default=0) / 2**30, 3
                ),
                "nvidia_smi_gib": ended.gpu_gib,
                "memory": ended.report.get("memory"),
                "options": ended.options,
                "losses": losses(run),
            }
        return run

    def _faster(self, name: str, run: Run, than: Run) -> None:
        if slower := speed_of(than):
            self.ratios[name] = speed_of(run) / slower
            print(f"  {name} = {self.ratios[name]:.2f}", flush=True)

    def _compare(self, name: str, run: Run, with_run: Run) -> None:
        ours, theirs = losses(run), losses(with_run)
        later = {step - LOGGING_STEPS: loss for step, loss in theirs.items()}
        found, control = self.gaps[name] = gap(ours, theirs), gap(ours, later)
        self.checks[f"losses agree: {name}"] = found is not None and control is not None and found < control / 4


PARTS = ("speed", "sharded", "offloaded", "same", "resume")


def run_parts(found: Comparison, parts: list[str], save: Callable[[], object]) -> None:
    """Run the parts; a part that fails is a failed check."""
    for part in parts:
        began = time.monotonic()
        print(f"{part}: {(getattr(Comparison, part).__doc__ or '').strip()}", flush=True)
        try:
            getattr(found, part)()
        except OutOfTimeError as error:
            print(f"  left out: {error}", flush=True)
            found.checks[f"{part}: had time"] = False
        except Exception:
            print(traceback.format_exc(), flush=True)
            found.checks[f"{part}: no error of the bench"] = False
        print(f"  {part} took {time.monotonic() - began:.0f} s", flush=True)
        save()


def print_table(found: Comparison) -> None:
    """Print everything that was found."""
    for name, run in found.runs.items():
        if "tokens_per_second" in run:
            base = (run["memory"] or {}).get("base") or 0
            print(
                f"{name:<10}{run['tokens_per_second']:>10.0f} tokens/s, peak {run['peak_gib_of_process_0']} GiB, base "
                f"{base / 2**30:.3f} GiB, by nvidia-smi {run['nvidia_smi_gib']}, {run['seconds']} s; {run['options']}"
            )
    if "killed" in found.runs:
        print(f"seconds from the kill to the end: {found.runs['killed']['seconds']}")
    for name, ratio in found.ratios.items():
        print(f"{name} = {ratio:.2f}" + (f", goal {GOALS[name]}" if name in GOALS else ""))
    for name, pair in found.gaps.items():
        shown = ["-" if value is None else f"{value:.1e}" for value in pair]
        print(f"largest loss gap, {name}: {shown[0]}; one interval later: {shown[1]}")
    for name in ("own", "kept"):
        if found.same_bits.get(name):
            print(f"same steps, {name} choices: groups of {found.same_bits[f'{name}_groups']}")
    for name, good in found.checks.items():
        print(f"{'ok    ' if good else 'FAILED'}  {name}")


def main() -> int:
    """Run the parts and print a table last; exit 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="folder with config.json and tokenizer files")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--same-layers", type=int, default=4, help="layers of the base of the part same")
    parser.add_argument("--processes", type=int, default=12, help="processes of each round of the part same")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--length", type=int, default=2048, help="tokens per window")
    parser.add_argument("--batch", type=int, default=2, help="windows per forward pass")
    parser.add_argument("--passes", type=int, default=4, help="forward passes per step, in all processes together")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--compile", default="on", choices=["on", "off"])
    parser.add_argument("--parts", default=",".join(PARTS), help="in this order")
    parser.add_argument("--seconds", type=float, default=400, help="runs that would end later are left out")
    parser.add_argument("--out", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    if arguments.steps < 12 * LOGGING_STEPS:
        parser.error(
            f"--steps: a process is killed after half of them, and stopped later: {12 * LOGGING_STEPS} or more"
        )
    on_gpu = arguments.device == "cuda"
    if on_gpu and torch.cuda.device_count() < 2:
        parser.error(f"torch sees {torch.cuda.device_count()} GPUs")
    with tempfile.TemporaryDirectory(prefix="aegis-two-", ignore_cleanup_errors=True) as directory:
        return measured(arguments, parts, Path(directory), time.monotonic() + arguments.seconds)


def measured(arguments: argparse.Namespace, parts: list[str], work: Path, deadline: float) -> int:
    """Write the bases and the data, run the parts, and print the table."""
    on_gpu = arguments.device == "cuda"
    os.environ |= {"AEGIS_CACHE_DIR": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    data, bases = work / "data.jsonl", {}
    write_long(data, 1_000_000)
    for name, layers in (("base", arguments.layers), ("small", arguments.same_layers)):
        began, bases[name] = time.monotonic(), work / f"phi-3.5-mini-{name}"
        copy_template(arguments.template, bases[name], layers)
        write_base(meta_model(bases[name]), bases[name], arguments.device)
        print(f"{name}: {layers} layers, written in {time.monotonic() - began:.0f} s", flush=True)
    if on_gpu:
        torch.cuda.empty_cache()
    settings = {
        "base_model": str(bases["base"]),
        "dataset": str(data),
        "device": arguments.device,
        "max_length": arguments.length,
        "batch_size": arguments.batch,
        "max_steps": arguments.steps,
        "warmup_steps": 2,
        "annealing_steps": arguments.steps // 2,
        "learning_rate": 1e-3,
        "logging_steps": LOGGING_STEPS,
        "save_steps": arguments.steps // 2,
        "heldout_rows": 0,
        "keep_weight": 0.0,
        "compile": arguments.compile,
        "activation_checkpointing": "off",
    }
    same = settings | {"base_model": str(bases["small"]), "max_length": min(512, arguments.length), "batch_size": 1}
    bench = Bench(work, settings, arguments.passes, on_gpu, deadline)
    found = Comparison(bench, arguments.steps, same, arguments.processes)
    device = torch.cuda.get_device_name() if on_gpu else "CPU"

    def save() -> None:
        if arguments.out:
            results = {"versions": versions(), "device": device, "layers": arguments.layers, "settings": settings}
            results |= {name: getattr(found, name) for name in ("runs", "ratios", "gaps", "same_bits", "checks")}
            arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    run_parts(found, parts, save)
    tokens = arguments.passes * arguments.batch * arguments.length
    print(f"\n{device}, {arguments.layers} layers, {tokens} tokens per step, {arguments.steps} steps")
    print_table(found)
    return 0 if all(found.checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
