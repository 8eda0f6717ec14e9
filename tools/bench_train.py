"""The training step at the full Phi-3.5-mini shape on a GPU, beside transformers + peft and Unsloth in the same call.

    PYTHONPATH=pipeline:.:tools python tools/bench_train.py --template FOLDER [--parts core,unsloth] [--out FILE.json]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes,
since neither step time nor memory depends on their values (--base takes a folder with weights). Ours is `aegis train`'s
own loop with its data, dropout and logging, so the rows are what a user gets; a row's time is the median over its
logging intervals once the step has been recorded. Windows are full and hold one document, attention at its most
expensive, unless a row says "short". Nothing is kept unless a row says so, since peers keep nothing (--parts keep
compares both). Each row runs in a process of its own, and so do the peers (tools/peers_train.py), where they are
installed; a peer whose packages disturb others' is found through --peer-path.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmark import run_child
from full_size import copy_template, meta_model, write_base
from train_rows import LONG_STEPS, PARTS, write_long, write_short

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import load_training_set
from aegis.model.base import Base, find_base, load_tokenizer
from aegis.model.base_states import base_states
from aegis.model.device import choose_device
from aegis.runs.disk import cache_directory
from aegis.runs.manifest import versions
from aegis.training import build_state as building
from aegis.training.build_state import build_state
from aegis.training.keep.batches import KeptText
from aegis.training.keep.sources import load_kept
from aegis.training.loop import Loop

LOGGING_STEPS = 20
"""A multiple of keep_every, so that each interval has as many kept passes."""
PEERS = ("unsloth", "hf")
PEER_STEPS = 8


class Listener(progress.SilentReporter):
    """Keeps the metrics, prints the messages."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def metrics(self, row: dict[str, object]) -> None:
        self.rows.append(dict(row))

    def say(self, text: str) -> None:
        if text.startswith("step:"):
            print(f"  {text}", flush=True)

    def warn(self, text: str) -> None:
        print(f"  warning: {text}", flush=True)


def measure(settings: dict[str, Any], steps: int, profile: Path | None) -> dict[str, Any]:
    """Train `steps` steps with aegis's own loop and return speed and memory.

    A row may have "offloaded_layers", which is no setting: that number is offloaded, whatever memory there is.
    """
    listener = Listener()
    progress.install(listener)
    offloaded_layers = settings.pop("offloaded_layers", None)
    if offloaded_layers is not None:
        building.fit_to_memory = lambda given, *_: replace(given, offloaded_layers=offloaded_layers)
    config = TrainConfig(**settings, max_steps=steps, logging_steps=min(LOGGING_STEPS, steps), save_steps=steps)
    device = choose_device(config.device)
    on_gpu = device.type == "cuda"
    base = find_base(config.base_model)
    tokenizer = load_tokenizer(base.folder)
    data = load_training_set(config, tokenizer)
    kept, keep_seconds = _kept(config, base, tokenizer, device)
    with build_state(config, base, device, None) as state:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        loop = Loop(state, config, data.train, None, kept)
        loop.run(0, min(LOGGING_STEPS, steps))
        warm = time.perf_counter() - began
        if steps > LOGGING_STEPS:
            loop.run(LOGGING_STEPS, steps)
        rows = listener.rows
        tokens = config.batch_size * config.max_length
        times = [1e3 * tokens / row["tokens_per_second"] for row in rows if row["step"] > LOGGING_STEPS + 1]
        if profile is not None and on_gpu:
            _profile(loop, profile)
        return {
            "ms": round(statistics.median(times), 2) if times else None,
            "ms_all": [round(value, 2) for value in times],
            "peak_gib": round(rows[-1]["peak_bytes"] / 2**30, 3),
            "first_steps_s": round(warm, 1),
            **keep_seconds,
            "loss": rows[-1]["task_loss"],
            "options": vars(state.options),
        }


def _kept(
    config: TrainConfig, base: Base, tokenizer: Any, device: torch.device
) -> tuple[KeptText | None, dict[str, float]]:
    """The kept text and the base's states of it, as `aegis train` makes them, and the time that each took."""
    began = time.perf_counter()
    kept = load_kept(config, base, tokenizer, device)
    if kept is None:
        return None, {}
    found = time.perf_counter()
    text = KeptText(kept.train, base_states(base, kept.train, device, cache_directory()))
    seconds = {"keep_text_s": found - began, "keep_states_s": time.perf_counter() - found}
    return text, {name: round(value, 1) for name, value in seconds.items()}


def _profile(loop: Loop, path: Path) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        loop.run(0, LOGGING_STEPS)
    path.write_text(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=45), encoding="utf-8")


class Bench:
    """Runs the rows and the peers that the time allows, and writes each result as soon as it is there."""

    def __init__(self, arguments: argparse.Namespace, base: Path, texts: Path) -> None:
        self._arguments, self._texts = arguments, texts
        self._deadline = time.perf_counter() + 60 * arguments.minutes
        self._common = {"base_model": str(base), "device": arguments.device, "compile": "on", "cuda_graphs": "on"}
        self.device = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
        self._results: dict[str, Any] = {"versions": versions(), "device": self.device, "rows": [], "peers": []}

    def ours(self, rows: list[dict[str, Any]], steps: int) -> None:
        """Measure rows of settings; those that would begin after the deadline are left out."""
        for settings in rows:
            left = self._deadline - time.perf_counter()
            if left < 0:
                return
            name = " ".join(f"{key}={value}" for key, value in settings.items())
            dataset = str(self._texts / f"{settings.get('dataset', 'long')}.jsonl")
            row: dict[str, Any] = {"keep_weight": 0.0, **self._common, **settings, "dataset": dataset}
            if self._arguments.profile:
                row["profile"] = str(self._arguments.profile / f"{name.replace(' ', '-').replace('=', '-')}.txt")
            child = [__file__, "--row", json.dumps(row), "--steps", str(steps)]
            self._keep("rows", {"name": name, **run_child(child, max(60.0, left))[-1]})

    def theirs(self, peer: str) -> None:
        """Measure a peer's step."""
        script = str(Path(__file__).with_name("peers_train.py"))
        path = self._arguments.peer_path if peer == "unsloth" else ""
        left = max(60.0, self._deadline - time.perf_counter())
        for row in run_child([script, peer, "512,2048,4096", str(PEER_STEPS)], left, path):
            self._keep("peers", {"peer": peer, **row})

    def print_table(self) -> None:
        print(f"\n{self.device}")
        for row in self._results["rows"]:
            _print_row(row["name"], row)
        for row in self._results["peers"]:
            _print_row(f"{row['peer']} {row.get('length')} {'recomputing' if row.get('recomputes') else ''}", row)

    def _keep(self, kind: str, row: dict[str, Any]) -> None:
        self._results[kind].append(row)
        print(json.dumps(row), flush=True)
        if self._arguments.out:
            self._arguments.out.write_text(json.dumps(self._results, indent=2) + "\n", encoding="utf-8")


def _print_row(name: str, row: dict[str, Any]) -> None:
    print(f"{name:<72} {row.get('ms') or '-':>8} ms {row.get('peak_gib', '-'):>7} GiB  {row.get('error', '')}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line; a part that does not exist is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, help="folder with config.json and tokenizer files")
    parser.add_argument("--base", type=Path, help="folder with weights, in place of --template")
    parser.add_argument("--layers", type=int, help="fewer layers, for a trial")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", help="JSON list of settings of aegis train, instead of the usual ones")
    parser.add_argument(
        "--parts",
        default="core,more,long",
        help=f"in this order, of {', '.join([*PARTS, *PEERS])}; long is with --gpu-memory-gib 12, capped with 3, "
        "offloaded with 9.8, forced with given numbers of offloaded layers and no cap",
    )
    parser.add_argument("--peer-path", default="", help="folder with Unsloth's packages, added to its path alone")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--profile", type=Path, help="folder for a profile of each row")
    parser.add_argument("--minutes", type=float, default=60, help="rows that would begin later are left out")
    parser.add_argument("--out", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts.split(",") if part not in PARTS and part not in PEERS]:
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join([*PARTS, *PEERS])}")
    return arguments


def main() -> int:
    """Run every row that the time allows and print a table last."""
    arguments = parse_arguments()
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if arguments.row:
        row = json.loads(arguments.row)
        profile = row.pop("profile", None)
        print(json.dumps(measure(row, arguments.steps, Path(profile) if profile else None)))
        return 0
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as directory:
        work = Path(directory)
        os.environ["AEGIS_CACHE_DIR"] = str(work / "cache")
        base = arguments.base or work / "phi-3.5-mini"
        bench = Bench(arguments, base, work)
        if arguments.base is None:
            copy_template(arguments.template, base, arguments.layers)
            write_base(meta_model(base), base, arguments.device)
        write_long(work / "long.jsonl", 1_000_000)
        write_short(work / "short.jsonl")
        if arguments.rows:
            bench.ours(json.loads(arguments.rows), arguments.steps)
        for part in [] if arguments.rows else arguments.parts.split(","):
            if part in PEERS:
                bench.theirs(part)
            else:
                bench.ours(PARTS[part], LONG_STEPS if part == "long" else arguments.steps)
    bench.print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
