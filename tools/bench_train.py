"""The training step at the full Phi-3.5-mini shape on a GPU, beside transformers + peft and Unsloth in the same call.

    PYTHONPATH=pipeline:.:tools python tools/bench_train.py --template FOLDER [--peers hf,unsloth] [--out results.json]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes,
since neither step time nor memory depends on their values. Ours is `aegis train`'s own loop with its data, dropout,
held-out set and logging, so the rows are what a user gets; a row's time is the median over its logging intervals after
the step has been recorded. Each row runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LENGTHS = (512, 2048, 4096)
MODES = ("off", "on", "offload")
LOGGING_STEPS = 10
PEERS = ("hf", "unsloth")


def write_data(path: Path, tokens: int) -> None:
    """Documents longer than any window, so that every window is full and attention is at its most expensive."""
    from aegis.demo.corpus import documents

    texts = documents(0, 3000)
    whole = "\n".join(texts)
    copies = max(1, tokens // len(whole))
    with path.open("w", encoding="utf-8") as file:
        for _ in range(copies):
            file.write(json.dumps({"text": whole}, ensure_ascii=False) + "\n")


def write_packed_data(path: Path) -> None:
    """Short documents, many to a window."""
    from aegis.demo.corpus import documents

    rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents(0, 3000))
    path.write_text("".join(rows), encoding="utf-8")


def measure(settings: dict[str, Any], steps: int, profile: Path | None) -> dict[str, Any]:
    """Train `steps` steps with aegis's own loop and return speed and memory."""
    import torch

    from aegis import progress
    from aegis.config import TrainConfig
    from aegis.model.base import find_base, load_tokenizer
    from aegis.model.load import choose_device
    from aegis.training.assembly import assembled
    from aegis.training.loop import Loop
    from aegis.training.material import training_data

    rows: list[dict[str, Any]] = []

    class Listener(progress.SilentReporter):
        def metrics(self, row: dict[str, object]) -> None:
            rows.append(row)

        def say(self, text: str) -> None:
            print(f"  {text}", flush=True)

        warn = say

    progress.install(Listener())
    config = TrainConfig(**settings, max_steps=steps, logging_steps=LOGGING_STEPS, save_steps=steps)
    device = choose_device(config.device)
    began = time.perf_counter()
    base = find_base(config.base_model)
    data = training_data(config, load_tokenizer(base.folder))
    with assembled(config, base, device, None) as trainee:
        loaded = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loop = Loop(trainee, config, data.train, None)
        loop.run(0, LOGGING_STEPS)
        warm = time.perf_counter()
        if profile is not None:
            _profile(loop, steps, profile)
        else:
            loop.run(LOGGING_STEPS, steps)
        tokens = config.batch_size * config.max_length
        times = [1e3 * tokens / row["tokens_per_second"] for row in rows if row["step"] > LOGGING_STEPS]
        return {
            "ms": round(statistics.median(times), 2),
            "ms_all": [round(value, 2) for value in times],
            "peak_gib": round(rows[-1]["peak_bytes"] / 2**30, 3),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3) if device.type == "cuda" else None,
            "warm_up_s": round(warm - loaded, 1),
            "load_s": round(loaded - began, 1),
            "loss": rows[-1]["task_loss"],
            "acceleration": vars(trainee.acceleration),
        }


def _profile(loop: Any, steps: int, path: Path) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    loop.run(LOGGING_STEPS, steps - 10)
    with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        loop.run(steps - 10, steps)
    path.write_text(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=45), encoding="utf-8")


def run_row(arguments: list[str]) -> dict[str, Any]:
    """Run one row in a process of its own; its last line is the result."""
    finished = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    lines = finished.stdout.strip().splitlines()
    try:
        for line in lines[:-1]:
            print(line, flush=True)
        return dict(json.loads(lines[-1]))
    except (ValueError, IndexError):
        return {"error": (finished.stderr.strip().splitlines() or ["no output"])[-1][:300], "log": finished.stderr}


def main() -> int:
    """Run every row and print a table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, help="folder with config.json and tokenizer files")
    parser.add_argument("--layers", type=int, help="fewer layers, for a trial")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--more", default="", help="further rows: JSON list of settings of aegis train")
    parser.add_argument("--profile", type=Path, help="folder for a profile of each row")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if arguments.row:
        row = json.loads(arguments.row)
        profile = row.pop("profile", None)
        print(json.dumps(measure(row, arguments.steps, Path(profile) if profile else None)))
        return 0

    import torch
    from rehearse_full_size import copy_template, meta_model, write_base

    from aegis.manifest import versions

    results: dict[str, Any] = {"versions": versions(), "device": arguments.device, "rows": []}
    if arguments.device == "cuda":
        results["device"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as directory:
        work = Path(directory)
        os.environ["AEGIS_CACHE_DIR"] = str(work / "cache")
        base = work / "phi-3.5-mini"
        copy_template(arguments.template, base, arguments.layers)
        write_base(meta_model(base), base, arguments.device)
        write_data(work / "long.jsonl", 2_000_000)
        write_packed_data(work / "short.jsonl")
        common = {"base_model": str(base), "device": arguments.device, "compile": "on"}
        rows: list[dict[str, Any]] = [
            {"max_length": length, "activation_checkpointing": mode}
            for length in map(int, arguments.lengths.split(","))
            for mode in arguments.modes.split(",")
            if mode
        ]
        rows += json.loads(arguments.more or "[]")
        for settings in rows:
            name = " ".join(f"{key}={value}" for key, value in settings.items())
            data = work / ("short.jsonl" if settings.pop("dataset", "long") == "short" else "long.jsonl")
            row = {**common, "dataset": str(data), **settings}
            if arguments.profile:
                row["profile"] = str(arguments.profile / f"{name.replace(' ', '_').replace('=', '-')}.txt")
            began = time.perf_counter()
            found = run_row(["--row", json.dumps(row), "--steps", str(arguments.steps)])
            results["rows"].append({"name": name, "wall_s": round(time.perf_counter() - began, 1), **found})
            print(json.dumps(results["rows"][-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{results['device']}")
    for row in results["rows"]:
        print(f"{row['name']:<62} {row.get('ms', '-'):>8} ms {row.get('peak_gib', '-'):>7} GiB  {row.get('error', '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
