"""Time `aegis merge` against copying the same folder, and against peft's merge, at the size of a Phi-3.5-mini.

    PYTHONPATH=pipeline:. python tools/bench_merge.py --template FOLDER [--layers 2] [--rest 5] [--out results.json]

FOLDER is the base without weights: config.json and tokenizer files. The weights are random numbers of the real shapes
and dtype, in two shards. Every contender runs in a process of its own, start-up and flushing to disk included, one
after the other, as often as --runs says; a ratio is to the copy of the same round, and what is printed are medians.
Where a machine gives memory back to a host, what was freed a moment ago is quicker to get than other memory, which
favours whoever writes at once: --rest waits before each contender until that is over.
At 3.8 B parameters this takes 16 GB of disk, and 16 GB of memory for peft, which is left out where they are not free.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from benchmark import measured_on, parser, quiet_and_offline, scratch
from full_size import copy_template, meta_model, write_adapter_and_soul, write_base

from aegis.model.base import hash_weights
from aegis.model.lora_targets import resolve_targets
from aegis.model.shards import ShardSet
from aegis.runs import disk
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul, save_soul
from aegis.soul.rotation import random_rotation

_SAMPLE_S = 0.02
COPY = "cp -r, sync"
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
PEFT_MEMORY = 2.1  # times the base: what it was seen to take


@dataclass(frozen=True)
class Run:
    """One contender once: wall time, processor time and peak memory of its process, and how busy the machine was."""

    name: str
    round: int
    seconds: float
    cpu_seconds: float
    rss_bytes: int
    load_before: float


def measure(name: str, number: int, command: Sequence[str | Path], out: Path) -> Run:
    """Run a command that writes `out`, and remove that."""
    load, rss = os.getloadavg()[0], 0
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=output)
        process, usage, status = psutil.Process(child.pid), None, 0
        # the rusage's own maximum begins with what this process takes, since the child is a copy of it at first
        while usage is None:
            time.sleep(_SAMPLE_S)
            with suppress(psutil.Error):
                rss = max(rss, process.memory_info().rss)
            pid, status, found = os.wait4(child.pid, os.WNOHANG)
            usage = found if pid else None
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            raise RuntimeError(
                f"{name} ended with {child.returncode}: {output.read().decode(errors='replace')[-2000:]}"
            )
    shutil.rmtree(out)
    run = Run(name, number, seconds, usage.ru_utime + usage.ru_stime, rss, load)
    print(
        f"  {name:<20}{run.seconds:8.1f} s{run.cpu_seconds:8.1f} s of processors"
        f"{run.rss_bytes / 2**30:8.2f} GiB   load {load:.1f}",
        flush=True,
    )
    return run


def prepare(work: Path, template: Path, layers: int | None) -> int:
    """Write the base, an adapter with a so8 soul and one with a dense soul; return the base's bytes."""
    base, so8, dense = work / "base", work / "so8", work / "dense"
    copy_template(template, base, layers)
    model = meta_model(base)
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    disk.require_space(work, 2 * total + (1 << 30), "the benchmark")
    write_base(model, base)
    write_adapter_and_soul(model, resolve_targets(model), so8, hash_weights(ShardSet.open(base)))
    shutil.copytree(so8, dense)
    soul = load_soul(so8 / SOUL_FILE)
    rotation = random_rotation(1, soul.hidden_size, torch.Generator().manual_seed(3))
    save_soul(dense / SOUL_FILE, replace(soul, rotation=rotation))
    return total


def contenders(work: Path, base_bytes: int, only: Sequence[str]) -> dict[str, list[str | Path]]:
    """Commands by name, the copy first; each writes <work>/out."""
    base, out = work / "base", work / "out"
    merge: list[str | Path] = [sys.executable, "-m", "aegis", "--quiet", "merge", "--base-model", base, "--out", out]
    found: dict[str, list[str | Path]] = {
        COPY: ["sh", "-c", f'cp -r "{base}" "{out}" && sync -f "{out}"'],
        "aegis, so8": [*merge, "--adapter", work / "so8"],
        "aegis, dense": [*merge, "--adapter", work / "dense"],
        "aegis, dequantized": [*merge, "--adapter", work / "so8", "--base-weights", "dequantized"],
        "peft": [sys.executable, "-c", PEFT, base, work / "so8", out],
    }
    free = psutil.virtual_memory().available
    if free < PEFT_MEMORY * base_bytes:
        del found["peft"]
        print(f"peft is left out: it takes {PEFT_MEMORY} times the base, and {free / 1e9:.1f} GB of memory are free")
    return {name: command for name, command in found.items() if name == COPY or not only or name in only}


def table(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Medians by contender, and the median of the ratios to the copy of the same round."""
    copies = {run.round: run.seconds for run in runs if run.name == COPY}
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(run.name for run in runs):
        own = [run for run in runs if run.name == name]
        rows.append(
            {
                "name": name,
                "seconds": round(statistics.median(run.seconds for run in own), 2),
                "times_copy": round(statistics.median(run.seconds / copies[run.round] for run in own), 2),
                "cpu_seconds": round(statistics.median(run.cpu_seconds for run in own), 2),
                "peak_gib": round(max(run.rss_bytes for run in own) / 2**30, 2),
                "runs": len(own),
            }
        )
    return rows


def main() -> int:
    """Run all, print the table, write the JSON."""
    options = parser(__doc__, "bench_merge.json")
    options.add_argument("--only", action="append", default=[], help="a contender beside the copy; all if not given")
    options.add_argument("--rest", type=float, default=0, help="seconds before each contender")
    arguments = options.parse_args()
    quiet_and_offline()
    runs: list[Run] = []
    with scratch("bench-merge-", arguments.work) as work:
        base_bytes = prepare(work, arguments.template, arguments.layers)
        commands = contenders(work, base_bytes, arguments.only)
        for number in range(arguments.runs):
            print(f"round {number + 1} of {arguments.runs}")
            for name, command in commands.items():
                time.sleep(arguments.rest)
                runs.append(measure(name, number, command, work / "out"))
    rows = table(runs)
    print(f"\n{'':<20}{'seconds':>9}{'× copy':>8}{'CPU s':>8}{'peak GiB':>10}")
    for row in rows:
        print(
            f"{row['name']:<20}{row['seconds']:>9.1f}{row['times_copy']:>8.2f}"
            f"{row['cpu_seconds']:>8.1f}{row['peak_gib']:>10.2f}"
        )
    document = {
        **measured_on(),
        "base_bytes": base_bytes,
        "rest_seconds": arguments.rest,
        "table": rows,
        "runs": [asdict(run) for run in runs],
    }
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
