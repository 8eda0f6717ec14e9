"""What the soul, keep and LoRA do to a real model: the product's own training, many settings, several seeds.

    python tools/study_soul.py BASE OUT --domain ja=ja.jsonl --domain en=en.jsonl --other other.jsonl

Each training leaves one JSON file in OUT/cells, and one that is there is not repeated: an interrupted study goes on
with the same command. The end writes OUT/study.json and OUT/study.md. On a GPU several trainings run at once
(--workers). `--cells` names some of tools/study/cells.py, `--trial` takes four steps of each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from study import tables
from study.cells import CELLS, COMMON

TRIAL = {"max_steps": 4, "warmup_steps": 1, "annealing_steps": 2, "batch_size": 1, "max_length": 64, "keep_windows": 8}
Job = tuple[str, str, int]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("base", type=Path, help="folder of the base, as tools/real_model.py makes one")
    arguments.add_argument("out", type=Path, help="folder for the results")
    arguments.add_argument("--domain", action="append", required=True, help="NAME=FILE: text to learn, may be repeated")
    arguments.add_argument("--other", type=Path, required=True, help="text of neither domain")
    arguments.add_argument("--cells", help="names of cells, separated by ';'; all if not given")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--workers", type=int, default=1, help="trainings at once")
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="start no training after this time")
    arguments.add_argument("--trial", action="store_true", help="four steps each, to try the study itself")
    arguments.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    return arguments.parse_args(argv)


def jobs(args: argparse.Namespace) -> list[Job]:
    """All trainings, the first seed of each cell first."""
    chosen = args.cells.split(";") if args.cells else list(CELLS)
    if unknown := [name for name in chosen if name not in CELLS]:
        sys.exit(f"no such cell: {', '.join(unknown)}; there are: {'; '.join(CELLS)}")
    domains = [name.partition("=")[0] for name in args.domain]
    return [(cell, domain, seed) for domain in domains for seed in range(args.seeds) for cell in chosen]


def path_of(out: Path, job: Job) -> Path:
    """Where a training's result stands."""
    cell, domain, seed = job
    return out / "cells" / f"{re.sub('[^a-z0-9.]+', '-', cell.lower()).strip('-')}.{domain}.{seed}.json"


def work(args: argparse.Namespace) -> None:
    """Make this worker's share of the results."""
    import torch
    from study import measure

    from aegis.config.settings import TrainConfig
    from aegis.model.base import find_base, load_tokenizer
    from aegis.model.load import load_base
    from aegis.runs.run import Run

    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = dict(name.split("=", 1) for name in args.domain)
    base, run = find_base(str(args.base)), Run(args.out / f"worker{args.worker}")
    tokenizer = load_tokenizer(base.folder)
    base_model = load_base(base.folder, "16bit", device).eval()
    texts: dict[str, Any] = {}

    def config(cell: str, domain: str, seed: int) -> Any:
        settings = {**COMMON, **CELLS[cell], **(TRIAL if args.trial else {})}
        return TrainConfig(base_model=str(args.base), dataset=files[domain], device=device.type, seed=seed, **settings)

    if args.prepare:
        _texts(config("defaults: so8 + keep", next(iter(files)), 0), run, tokenizer, args.other)
        return
    for number, job in enumerate(jobs(args)):
        target = path_of(args.out, job)
        if number % args.workers != args.worker or target.is_file():
            continue
        if time.monotonic() - began > args.minutes * 60:
            break
        cell, domain, seed = job
        if domain not in texts:
            texts[domain] = _texts(config("defaults: so8 + keep", domain, 0), run, tokenizer, args.other)
            _write(args.out / "cells" / f"base.{domain}.json", _judged(base_model, texts[domain]))
        found = measure.trained(config(*job), base, run, texts[domain], base_model, device)
        _write(target, {"cell": cell, "domain": domain, "seed": seed, **found})
        print(
            f"{cell}, {domain}, seed {seed}: new {found['new']['loss']:.4f}, KL {found['kept']['kl']:.4f}", flush=True
        )


def _texts(config: Any, run: Any, tokenizer: Any, other: Path) -> Any:
    from study import measure

    from aegis.stages.train import train

    # one step of a training that keeps: its run holds the windows that judge all others
    train(config.model_copy(update={"max_steps": 1, "save_steps": 1}), run, overwrite=True)
    return measure.texts_of(run, config, tokenizer, other)


def _judged(model: Any, texts: Any) -> dict[str, Any]:
    from study import measure

    return {name: vars(measure.judge(model, getattr(texts, name))) for name in ("new", "kept", "other")}


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Run the study, or one worker of it."""
    given = sys.argv[1:] if argv is None else argv
    args = parse(given)
    if args.worker is not None:
        work(args)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "workers.log"
    with log.open("a", encoding="utf-8") as out:
        # once, for all workers: the base writes its kept text into the cache
        subprocess.run([sys.executable, __file__, *given, "--worker", "0", "--prepare"], stderr=out, check=True)
        workers = [
            subprocess.Popen([sys.executable, __file__, *given, "--worker", str(number)], stdout=sys.stdout, stderr=out)
            for number in range(args.workers)
        ]
        failed = sum(worker.wait() != 0 for worker in workers)
    tables.write(args.out)
    if failed:
        print(f"{failed} of {args.workers} workers failed: see {log}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
