"""What the soul, keep and LoRA do to a real model: the product's own training, many settings, several seeds.

    python tools/study_soul.py BASE OUT --domain ja=ja.jsonl --domain en=en.jsonl --other other.jsonl

Each training leaves one JSON file in OUT/cells, and one that is there is not repeated: an interrupted study goes on
with the same command. The end writes OUT/study.json and OUT/study.md. On a GPU several trainings run at once
(--workers). `--cells` names some of tools/study/cells.py, `--trial` takes four steps of each. `--plan FILE` has lines
`cell | domain | number of seeds` instead, which are trained in this order.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study import tables
from study.cells import CELLS, COMMON, DEFAULTS

from aegis.config.train_settings import TrainConfig
from aegis.runs.run import Run

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
    arguments.add_argument("--plan", type=Path, help="file of what to train, in place of --cells and --seeds")
    arguments.add_argument("--workers", type=int, default=1, help="trainings at once")
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="start no training after this time")
    arguments.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of all trainings, before a cell's own; lists as JSON",
    )
    arguments.add_argument("--trial", action="store_true", help="four steps each, to try the study itself")
    arguments.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    return arguments.parse_args(argv)


def jobs(args: argparse.Namespace) -> list[Job]:
    """All trainings in order; without a plan, the first seed of each cell first."""
    domains = [name.partition("=")[0] for name in args.domain]
    if args.plan is None:
        chosen = args.cells.split(";") if args.cells else list(CELLS)
        found = [(cell, domain, seed) for domain in domains for seed in range(args.seeds) for cell in chosen]
    else:
        found = list(dict.fromkeys(_planned(args.plan.read_text(encoding="utf-8"))))
    if unknown := sorted({cell for cell, _, _ in found} - set(CELLS)):
        sys.exit(f"no such cell: {', '.join(unknown)}; there are: {'; '.join(CELLS)}")
    if unknown := sorted({domain for _, domain, _ in found} - set(domains)):
        sys.exit(f"no such domain: {', '.join(unknown)}; there are: {', '.join(domains)}")
    return found


def _planned(text: str) -> Iterator[Job]:
    for line in filter(str.strip, text.splitlines()):
        cell, domain, seeds = (part.strip() for part in line.split("|"))
        yield from ((cell, domain, seed) for seed in range(int(seeds)))


def path_of(out: Path, job: Job) -> Path:
    """Where a training's result stands."""
    cell, domain, seed = job
    return out / "cells" / f"{re.sub('[^a-z0-9.]+', '-', cell.lower()).strip('-')}.{domain}.{seed}.json"


def work(args: argparse.Namespace) -> None:
    """Take one training after the other that no other worker has taken."""
    import torch
    from study import measure

    study = _Study(args)
    began = time.monotonic()
    for number, job in enumerate(jobs(args)):
        if time.monotonic() - began > args.minutes * 60:
            break
        target = path_of(args.out, job)
        if target.is_file() or not _claimed(args.out, number):
            continue
        cell, domain, seed = job
        torch._dynamo.reset()
        config, run = study.config(*job), Run(args.out / f"worker{args.worker}")
        texts = study.texts(config)
        found = measure.trained(CELLS[cell], config, study.base, run, texts, study.base_model, study.device)
        _write(target, {"cell": cell, "domain": domain, "seed": seed, **found})
        shown = f"new {found['new']['loss']:.4f}, KL {found['kept']['kl']:.4f}, {found['seconds']:.0f} s"
        print(f"{cell}, {domain}, seed {seed}: {shown}", flush=True)


def prepare(args: argparse.Namespace) -> None:
    """Let the base write the kept text, once for all workers, and measure the base on every text."""
    import torch
    from study import measure, shipped

    from aegis.stages.train import train

    torch.set_num_threads(os.cpu_count() or 1)  # nothing else runs yet
    study = _Study(args)
    # one step of a training that keeps: its run holds the windows that judge all others
    config = study.config(DEFAULTS, next(iter(study.files)), 0)
    train(config.model_copy(update={"max_steps": 1, "save_steps": 1}), study.first_run, overwrite=True)
    for domain in study.files:
        texts = study.texts(study.config(DEFAULTS, domain, 0))
        found = measure.judged_on(study.base_model, texts, study.base_model)
        if quants := sorted({quant for cell, _, _ in jobs(args) for quant in CELLS[cell].shipped}):
            found |= {"shipped": shipped.base_judged(study.base, quants, texts, study.base_model)}
        _write(args.out / "cells" / f"base.{domain}.json", found)


class _Study:
    """What every worker loads: base, tokenizer, texts."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from aegis.model.base import find_base, load_tokenizer
        from aegis.model.load import load_base

        self._args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.files = dict(name.split("=", 1) for name in args.domain)
        self.base, self.first_run = find_base(str(args.base)), Run(args.out / "first")
        self._tokenizer = load_tokenizer(self.base.folder)
        self.base_model = load_base(self.base.folder, "16bit", self.device).eval()

    def config(self, cell: str, domain: str, seed: int) -> TrainConfig:
        chosen = dict(map(setting, self._args.set))
        settings = {**COMMON, **chosen, **CELLS[cell].settings, **(TRIAL if self._args.trial else {})}
        if self.device.type == "cpu":
            settings["compile"] = "off"
        if self._args.trial and settings["finish_steps"] != "off":
            settings["finish_steps"] = "2"
        base, dataset = str(self._args.base), self.files[domain]
        return TrainConfig(base_model=base, dataset=dataset, device=self.device.type, seed=seed, **settings)

    def texts(self, config: TrainConfig) -> Any:
        from study import measure

        return measure.texts_of(self.first_run, config, self._tokenizer, self._args.other)


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, whose value is JSON or else plain text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _claimed(out: Path, number: int) -> bool:
    """Whether this worker is the first to ask for a training."""
    try:
        (out / "claims" / str(number)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Run the study, or one worker of it."""
    given = sys.argv[1:] if argv is None else argv
    args = parse(given)
    if args.prepare:
        prepare(args)
        return 0
    if args.worker is not None:
        work(args)
        return 0
    shutil.rmtree(args.out / "claims", ignore_errors=True)
    (args.out / "claims").mkdir(parents=True)
    log = args.out / "workers.log"
    with log.open("a", encoding="utf-8") as out:
        # once, for all workers: the base writes its kept text into the cache
        subprocess.run([sys.executable, __file__, *given, "--prepare"], stderr=out, check=True)
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
