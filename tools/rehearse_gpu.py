"""Kill a training at the full Phi-3.5-mini shape on a GPU and go on: is it the undisturbed one, to the bit?

    PYTHONPATH=pipeline:.:tools python tools/rehearse_gpu.py --template FOLDER [--layers 2] [--out FILE]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes.
Speed and memory are `bench_train.py`'s, and the faster ways against the plain one tests/training/test_gpu.py's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from full_size import copy_template, meta_model, write_base
from safetensors.torch import load_file

from aegis.config.train_settings import TrainConfig
from aegis.demo.corpus import documents
from aegis.model.adapter import WEIGHTS
from aegis.runs.manifest import versions
from aegis.runs.run import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.stages.train import train
from aegis.training.step import Stepper


class _Killed(BaseException):
    """Stands for a SIGKILL after some step."""


def write_data(path: Path) -> None:
    """Plain Japanese text, enough for every length."""
    rows = (json.dumps({"text": text}, ensure_ascii=False) for text in documents(0, 3000))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def rehearse_resume(config: TrainConfig, work: Path) -> dict[str, Any]:
    """A run killed after step 7 and resumed from step 6, beside an undisturbed one: are their losses the same?"""
    whole, broken = Run(work / "whole"), Run(work / "broken")
    train(config, whole)
    launch = Stepper.launch

    def dying(self: Stepper, step: int, *arguments: Any) -> Any:
        if step >= 7:
            raise _Killed
        return launch(self, step, *arguments)

    Stepper.launch = dying  # type: ignore[method-assign]
    try:
        train(config, broken)
    except _Killed:
        pass
    finally:
        Stepper.launch = launch  # type: ignore[method-assign]
    report = train(config, broken, resume=True)
    losses = [
        [json.loads(line)["task_loss"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        for run in (whole, broken)
    ]
    gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
    one, other = (load_file(run.adapter / WEIGHTS) | load_file(run.adapter / SOUL_FILE) for run in (whole, broken))
    weights = {name: (tensor - other[name]).abs().max().item() for name, tensor in one.items()}
    return {
        "resumed_from": report.resumed_from,
        "largest_loss_gap": gap,
        "largest_weight_gap": max(weights.values()),
        "tensors_that_differ": sum(value > 0 for value in weights.values()),
        "losses": losses[0],
    }


def main() -> int:
    """Run it; 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="folder with config.json and tokenizer files")
    parser.add_argument("--layers", type=int, help="fewer layers, for a trial")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--compile", default="off", choices=["off", "on"])
    parser.add_argument("--cuda-graphs", default="off", choices=["off", "on"])
    parser.add_argument("--out", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    results: dict[str, Any] = {"versions": versions(), "device": arguments.device}
    if arguments.device == "cuda":
        results["device"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory(prefix="aegis-gpu-") as directory:
        work = Path(directory)
        os.environ["AEGIS_CACHE_DIR"] = str(work / "cache")
        base, data = work / "phi-3.5-mini", work / "data.jsonl"
        copy_template(arguments.template, base, arguments.layers)
        write_base(meta_model(base), base, arguments.device)
        write_data(data)
        config = TrainConfig(
            base_model=str(base),
            dataset=str(data),
            device=arguments.device,
            max_length=arguments.max_length,
            compile=arguments.compile,
            cuda_graphs=arguments.cuda_graphs,
            max_steps=12,
            warmup_steps=2,
            annealing_steps=6,
            save_steps=6,
            logging_steps=1,
            learning_rate=1e-3,
        )
        results |= rehearse_resume(config, work)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))
    return int(results["tensors_that_differ"] > 0)


if __name__ == "__main__":
    sys.exit(main())
