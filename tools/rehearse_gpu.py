"""Train at the full Phi-3.5-mini shape on a GPU: memory and speed by length, resume, and a base that stayed as it was.

    PYTHONPATH=pipeline:. python tools/rehearse_gpu.py --template FOLDER [--layers 2] [--out results.json]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes,
since neither step time nor memory depends on their values. The steps are `aegis train`'s own, with its data, dropout
and logging; each row is a dry run of ten steps (the first counted in: it warms the GPU up).
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rehearse_full_size import copy_template, meta_model, write_base
from safetensors.torch import load_file

from aegis.config import TrainConfig
from aegis.demo.corpus import documents
from aegis.errors import AegisError
from aegis.manifest import versions
from aegis.runs import Run
from aegis.stages.train import dry_run, train
from aegis.training.step import Stepper

LENGTHS = (512, 2048, 4096)
COLUMNS = {"ms": 9, "peak": 9, "base": 9, "activations": 13}  # milliseconds a step, then GiB


class _Killed(BaseException):
    """Stands for a SIGKILL after some step."""


def write_data(path: Path) -> None:
    """Plain Japanese text, enough for every length."""
    rows = (json.dumps({"text": text}, ensure_ascii=False) for text in documents(0, 3000))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def measure(config: TrainConfig) -> dict[str, Any]:
    """One dry run: memory by part in GiB, milliseconds a step over the steps after the first."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    times: list[float] = []
    take = Stepper.take

    def timed(self: Stepper, step: int, batches: Any) -> Any:
        begin = time.perf_counter()
        numbers = take(self, step, batches)
        times.append(time.perf_counter() - begin)
        return numbers

    Stepper.take = timed  # type: ignore[method-assign]
    try:
        report = dry_run(config)
    finally:
        Stepper.take = take  # type: ignore[method-assign]
    assert report.memory is not None
    steady = sorted(times[1:])
    row: dict[str, Any] = {name: round(count / 2**30, 3) for name, count in vars(report.memory).items()}
    return row | {"ms": round(1e3 * steady[len(steady) // 2], 1), "loss": report.loss}


def rehearse_resume(config: TrainConfig, work: Path) -> dict[str, Any]:
    """A run killed after step 7 and resumed from step 6, beside an undisturbed one: are their losses the same?"""
    whole, broken = Run(work / "whole"), Run(work / "broken")
    train(config, whole)
    take = Stepper.take

    def dying(self: Stepper, step: int, batches: Any) -> Any:
        if step >= 7:
            raise _Killed
        return take(self, step, batches)

    Stepper.take = dying  # type: ignore[method-assign]
    try:
        train(config, broken)
    except _Killed:
        pass
    finally:
        Stepper.take = take  # type: ignore[method-assign]
    report = train(config, broken, resume=True)
    losses = [
        [json.loads(line)["task_loss"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        for run in (whole, broken)
    ]
    gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
    one, other = (
        load_file(run.adapter / "adapter_model.safetensors") | load_file(run.adapter / "soul.safetensors")
        for run in (whole, broken)
    )
    weights = {name: (tensor - other[name]).abs().max().item() for name, tensor in one.items()}
    return {
        "resumed_from": report.resumed_from,
        "largest_loss_gap": gap,
        "largest_weight_gap": max(weights.values()),
        "tensors_that_differ": sum(value > 0 for value in weights.values()),
        "losses": losses[0],
    }


def main() -> int:
    """Run it and print a table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="folder with config.json and tokenizer files")
    parser.add_argument("--layers", type=int, help="fewer layers, for a trial")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--out", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    results: dict[str, Any] = {"versions": versions(), "rows": {}}
    if arguments.device == "cuda":
        results["device"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory(prefix="aegis-gpu-") as directory:
        work = Path(directory)
        os.environ["AEGIS_CACHE_DIR"] = str(work / "cache")
        base, data = work / "phi-3.5-mini", work / "data.jsonl"
        copy_template(arguments.template, base, arguments.layers)
        write_base(meta_model(base), base)
        write_data(data)
        common: dict[str, Any] = {"base_model": str(base), "dataset": str(data), "device": arguments.device}
        cases: list[tuple[str, dict[str, Any]]] = [("defaults, 512", {})]
        for length in map(int, arguments.lengths.split(",")):
            for checkpointing in ("on", "off"):
                settings = {"max_length": length, "activation_checkpointing": checkpointing}
                cases.append((f"{length}, checkpointing {checkpointing}", settings))
        cases.append(("512, dense soul", {"rotation": "dense"}))
        for name, settings in cases:
            try:
                results["rows"][name] = measure(TrainConfig(**common, **settings))
            except (AegisError, torch.OutOfMemoryError) as error:
                results["rows"][name] = {"error": str(error)}
            print(name, results["rows"][name], flush=True)
        short = TrainConfig(
            **common, max_steps=12, warmup_steps=2, annealing_steps=6, save_steps=6, logging_steps=1, learning_rate=1e-3
        )
        results["resume"] = rehearse_resume(short, work)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: results[key] for key in ("versions", "resume")}))
    print(f"\n{results.get('device', 'CPU')}")
    print(f"{'settings':<26}" + "".join(f"{key:>{width}}" for key, width in COLUMNS.items()))
    for name, row in results["rows"].items():
        numbers = "".join(f"{row.get(key, '-'):>{width}}" for key, width in COLUMNS.items())
        print(f"{name:<26}{numbers}  {row.get('error', '').splitlines()[:1] or ''}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
