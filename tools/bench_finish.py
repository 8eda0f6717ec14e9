"""The finish at the full Phi-3.5-mini shape on a GPU: step time and memory before it and in it, in one training.

    PYTHONPATH=pipeline:.:tools python tools/bench_finish.py --template FOLDER [--quant Q4_K_M,Q3_K_M] [--out FILE.json]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes.
Every row is one training by `aegis train`'s own loop, whose second half is a finish, in a process of its own. The peaks
are torch's, of the steps alone. "refresh" is the time of rounding the adapted weights and the head once. A second table
compares the device's rounding with llama.cpp's, for the types of these files (`bench_rounding` has all of them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_rounding import nearness, samples, ways
from bench_train import Listener, write_long
from benchmark import run_child
from full_size import copy_template, meta_model, write_base

from aegis import progress
from aegis.config.settings import ExportConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import load_training_set
from aegis.model.base import find_base
from aegis.model.device import choose_device
from aegis.runs.manifest import versions
from aegis.training.build_state import build_state
from aegis.training.finish import FinishStart
from aegis.training.finish_choice import plan_finish
from aegis.training.loop import Loop
from aegis.verification.run_precheck import Later
from aegis.verification.tokenizer_precheck import converted_vocabulary

LOGGING_STEPS = 10


def measure(settings: dict[str, Any], steps: int, quant: str) -> dict[str, Any]:
    """Train `steps` steps, the second half as a finish, and return times and peaks of both halves."""
    listener = Listener()
    progress.install(listener)
    half = steps // 2
    config = TrainConfig(
        **settings, max_steps=steps, finish_steps=str(steps - half), logging_steps=LOGGING_STEPS, save_steps=steps
    )
    device, base = choose_device(config.device), find_base(config.base_model)
    later = Later(export=ExportConfig(quant=(quant,)))
    with converted_vocabulary(base) as vocabulary:
        finish = plan_finish(config, base, later, vocabulary)
    assert finish is not None
    data = load_training_set(config, base.tokenizer())
    with build_state(config, base, device, None, finish=finish) as state:
        loop = Loop(
            state, config, data.train, None, finish=FinishStart(finish, finish.make_blocks(config.lora_targets))
        )
        loop.run(0, half)
        before, rows = _peak(device), len(listener.rows)
        began = time.perf_counter()
        loop.run(half, half + LOGGING_STEPS)
        entering = time.perf_counter() - began
        _peak(device)
        loop.run(half + LOGGING_STEPS, steps)
        peak = _peak(device)
        assert state.shipped is not None
        refresh = [_seconds(state.shipped.refresh, device) for _ in range(7)]
    tokens = config.batch_size * config.max_length

    def ms(found: list[dict[str, Any]]) -> float | None:
        times = [1e3 * tokens / row["tokens_per_second"] for row in found]
        return round(statistics.median(times), 2) if times else None

    return {
        "quant": quant,
        "types": sorted(set(finish.recipe.types.values())),
        "ms_before": ms([row for row in listener.rows[:rows] if row["step"] > 2 * LOGGING_STEPS]),
        "ms_finish": ms([row for row in listener.rows[rows:] if row["step"] > half + 2 * LOGGING_STEPS]),
        "refresh_ms": round(1e3 * statistics.median(refresh), 2),
        "entering_s": round(entering, 1),
        "peak_before_gib": before,
        "peak_finish_gib": peak,
        "losses": [round(row["task_loss"], 4) for row in listener.rows],
        "options": vars(replace(state.options)),
    }


def _seconds(work: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak(device: torch.device) -> float | None:
    """Return the peak since the last call in GiB."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return round(peak / 2**30, 3)


def parity(types: Iterable[str], device: torch.device) -> list[dict[str, Any]]:
    """Compare the rounding that a finish on this device takes with llama.cpp's."""
    rows = []
    for kind in types:
        name, way = next(iter(ways(device, kind).items()))
        near = {case: nearness(way, values, kind) for case, values in samples(device).items()}
        rows.append({"type": kind, "way": name, **near})
    return rows


def show(results: Mapping[str, Any]) -> None:
    """Print both tables."""
    print(f"\n{results['device']}\nsoul   type     ms before  in finish  refresh  GiB before  in finish  to enter")
    for row in results["rows"]:
        names = ("ms_before", "ms_finish", "refresh_ms", "peak_before_gib", "peak_finish_gib", "entering_s")
        print(f"{row['rotation']:6} {row.get('quant', '?'):8}", *(f"{row.get(name)!s:>9}" for name in names))
        print(row.get("error", ""), end="")
    print("\ntype   rounded by   weights   error : llama.cpp's   equal values   control")
    for row in results["parity"]:
        for case in ("normal", "tails"):
            near = row[case]
            print(
                f"{row['type']:6} {row['way']:12} {case:9} {near['error']:>19.5f} {near['equal']:>14.2%} "
                f"{near['control']:>9.3f}"
            )


def main() -> int:
    """Measure every row and print the tables last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, help="folder with config.json and tokenizer files")
    parser.add_argument("--layers", type=int, help="fewer layers, for a trial")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quant", default="Q4_K_M", help="types, one row each")
    parser.add_argument("--rotation", default="so8,dense", help="kinds of soul, one row each")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--compile", default="on", choices=["on", "off"], help="as in aegis train")
    parser.add_argument("--gpu-memory-gib", type=float, help="as in aegis train")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if arguments.row:
        print(json.dumps(measure(json.loads(arguments.row), arguments.steps, arguments.quant)))
        return 0
    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "versions": versions(), "rows": []}
    results["device"] = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as directory:
        work = Path(directory)
        base = work / "phi-3.5-mini"
        copy_template(arguments.template, base, arguments.layers)
        write_base(meta_model(base), base, arguments.device)
        write_long(work / "long.jsonl", 200_000)
        common = {"base_model": str(base), "dataset": str(work / "long.jsonl"), "device": arguments.device}
        common |= {"max_length": arguments.max_length, "gpu_memory_gib": arguments.gpu_memory_gib, "heldout_rows": 0}
        common |= {"compile": arguments.compile}
        for rotation in arguments.rotation.split(","):
            for quant in arguments.quant.split(","):
                row = json.dumps({**common, "rotation": rotation, "keep_weight": 0.0})
                child = [__file__, "--row", row, "--steps", str(arguments.steps), "--quant", quant]
                found = {"rotation": rotation, **run_child(child, 600)[-1]}
                results["rows"].append(found)
                print(json.dumps(found), flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    types = sorted({kind for row in results["rows"] for kind in row.get("types", ())})
    results["parity"] = parity(types, torch.device(arguments.device))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
