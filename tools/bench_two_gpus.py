"""One training on two GPUs beside one GPU at the same global batch: losses, speed, memory, resume, a killed process,
and a base that both hold together.

    PYTHONPATH=pipeline:.:tools python tools/bench_two_gpus.py --template FOLDER [--parts killed,split] [--out FILE]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes of
Phi-3.5-mini. Every run is `aegis train` in processes of its own, through torchrun where it takes two; NVLink multicast
stays off. The losses of two runs that should agree are compared with those of another seed, which should not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from bench_train import write_long
from full_size import copy_template, meta_model, write_base

from aegis.errors import IntegrityError
from aegis.runs.manifest import versions
from aegis.runs.run import Run
from aegis.training import checkpoint

ROOT = Path(__file__).parents[1]
GLOBAL_PASSES = 2
LOGGING_STEPS = 5
KILLED_MESSAGE = "another process of this training ended"


@dataclass
class Ended:
    """A run's end: exit code, wall time, what it wrote on stderr, and each GPU's largest memory use in GiB."""

    code: int
    seconds: float
    err: str
    gpu_gib: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    work: Path
    settings: dict[str, Any]
    on_gpu: bool

    def run(self, name: str) -> Run:
        """A run directory."""
        return Run(self.work / name)

    def train(self, processes: int, run: Run, *arguments: str, kill_after: int | None = None, **other: Any) -> Ended:
        """`aegis train` in one or two processes; the second is killed when step `kill_after` has been logged."""
        settings = self.settings | {"gradient_accumulation_steps": GLOBAL_PASSES // processes} | other
        config = self.work / f"{run.root.name}.toml"
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        config.write_text("[train]\n" + lines, encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m"]
        command += [*(["--"] if processes > 1 else []), "aegis", "train", "--config", str(config)]
        given = os.environ.get("PYTHONPATH")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT), *([given] if given else [])]),
            "CUDA_VISIBLE_DEVICES": ",".join(str(number) for number in range(processes)) if self.on_gpu else "",
            "NCCL_NVLS_ENABLE": "0",
        }
        log = self.work / f"{run.root.name}.log"
        began = time.monotonic()
        with log.open("w", encoding="utf-8") as err, Memory(self.on_gpu) as memory:
            child = subprocess.Popen(
                [*command, "--run", str(run.root), *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
            if kill_after is not None:
                _kill_second(child, run, kill_after)
                began = time.monotonic()
            code = child.wait()
        ended = Ended(code, round(time.monotonic() - began, 1), log.read_text(encoding="utf-8"), memory.most)
        print(f"{run.root.name:<16} exit {code}, {ended.seconds} s, GPUs {memory.most} GiB", flush=True)
        if code and kill_after is None:
            print(ended.err[-3000:], flush=True)
        return ended


class Memory:
    """Samples what nvidia-smi says each GPU has in use."""

    def __init__(self, on_gpu: bool) -> None:
        self.most: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True) if on_gpu else None

    def __enter__(self) -> Memory:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            told = subprocess.run(
                ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                check=False,
            )
            now = [round(int(line) / 1024, 2) for line in told.stdout.split() if line.isdigit()]
            self.most = [max(pair) for pair in zip(now, self.most or now, strict=True)]


def _kill_second(child: subprocess.Popen[bytes], run: Run, step: int) -> None:
    while child.poll() is None and max(losses(run), default=0) < step:
        time.sleep(0.05)
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.environ().get("RANK") == "1":
                    process.kill()
                    return


def rows(run: Run) -> list[dict[str, Any]]:
    """What a run logged so far."""
    if not run.metrics.is_file():
        return []
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def losses(run: Run) -> dict[int, float]:
    """Step → task loss."""
    return {row["step"]: row["task_loss"] for row in rows(run)}


def gap(one: Run, other: Run) -> float | None:
    """The largest difference between two runs' losses at the steps both logged; None if there is none."""
    ours, theirs = losses(one), losses(other)
    return max((abs(ours[step] - theirs[step]) for step in ours.keys() & theirs.keys()), default=None)


def tokens_per_second(run: Run) -> float:
    """The median over the logging intervals after the first ten steps; of a short run, over all of them."""
    told = rows(run)
    return statistics.median([row["tokens_per_second"] for row in told if row["step"] > 10] or [0])


def cut_back(source: Run, target: Run, step: int) -> None:
    """A copy of a finished run as it was when it had just saved `step`."""
    target.root.mkdir(parents=True)
    place = checkpoint.at(source.checkpoints, step)
    shutil.copytree(place, checkpoint.at(target.checkpoints, step))
    shutil.copyfile(source.metrics, target.metrics)


def newest_step(run: Run) -> int | None:
    """The newest whole checkpoint's step."""
    with suppress(IntegrityError):
        found = checkpoint.newest_whole(run.checkpoints)
        return checkpoint.step_of(found[0]) if found else None
    return None


class Comparison:
    """Runs of the bench beside the run of two processes, and what was found of them."""

    def __init__(self, bench: Bench, half: int) -> None:
        self._bench, self._half = bench, half
        self.checks: dict[str, bool] = {}
        self.gaps: dict[str, float | None] = {}
        self.told: dict[str, Any] = {}
        self._two = self._kept("two", 2)
        other = bench.run("other-seed")
        bench.train(2, other, seed=7)
        self.control = gap(self._two, other)

    def speed(self) -> None:
        """One process at the same global batch."""
        self._compare("one GPU and two", self._kept("one", 1), self._two)

    def resume(self) -> None:
        """A run of two goes on in one, and a run of one in two."""
        one = self._kept("one", 1)
        for name, source, processes in (("two, then one", self._two, 1), ("one, then two", one, 2)):
            run = self._bench.run(name.replace(", ", "-").replace(" ", "-"))
            cut_back(source, run, self._half)
            self.checks[f"{name}: goes on"] = self._bench.train(processes, run, "--resume").code == 0
            self._compare(name, run, source)

    def killed(self) -> None:
        """A process of two dies after a checkpoint."""
        run = self._bench.run("bereft")
        ended = self._bench.train(2, run, kill_after=self._half + LOGGING_STEPS)
        self.told["killed"] = {"seconds": ended.seconds, "told": ended.err[-2000:]}
        self.checks["a killed process ends the run"] = ended.code != 0
        self.checks["and the other one says so"] = KILLED_MESSAGE in ended.err
        self.checks["the checkpoint is whole"] = newest_step(run) == self._half
        self.checks["two processes go on from it"] = self._bench.train(2, run, "--resume").code == 0
        self._compare("killed and resumed", run, self._two)

    def split(self) -> None:
        """Each of two processes holds half of the base's layers."""
        whole = {"shard_base": True, "activation_checkpointing": "on", "compile": "off"}
        self._compare("a base that is split", self._kept("split", 2, **whole), self._two)

    def _kept(self, name: str, processes: int, **other: Any) -> Run:
        run = self._bench.run(name)
        if name not in self.told:
            ended = self._bench.train(processes, run, **other)
            self.checks[f"{name}: ends well"] = ended.code == 0
            self.told[name] = {
                "seconds": ended.seconds,
                "tokens_per_second": tokens_per_second(run),
                "peak_gib_of_process_0": round(max((row["peak_bytes"] for row in rows(run)), default=0) / 2**30, 3),
                "nvidia_smi_gib": ended.gpu_gib,
                "losses": losses(run),
            }
        return run

    def _compare(self, name: str, run: Run, with_run: Run) -> None:
        found = self.gaps[name] = gap(run, with_run)
        self.checks[f"losses agree: {name}"] = (
            found is not None and self.control is not None and found < self.control / 10
        )


PARTS = ("speed", "resume", "killed", "split")


def main() -> int:
    """Run the parts and print a table last; exit 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="folder with config.json and tokenizer files")
    parser.add_argument("--layers", type=int, help="fewer layers, for a trial")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--length", type=int, default=2048, help="tokens a window")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--compile", default="on", choices=["on", "off"])
    parser.add_argument("--checkpointing", default="off", choices=["off", "on", "offload"])
    parser.add_argument("--parts", default=",".join(PARTS), help="in this order")
    parser.add_argument("--out", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    if arguments.steps < 4 * LOGGING_STEPS:
        parser.error(f"--steps: a process is killed between half of them and the end, so {4 * LOGGING_STEPS} or more")
    on_gpu = arguments.device == "cuda"
    if on_gpu and torch.cuda.device_count() < 2:
        parser.error(f"torch sees {torch.cuda.device_count()} GPUs")
    steps, half = arguments.steps, arguments.steps // 2
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    with tempfile.TemporaryDirectory(prefix="aegis-two-") as directory:
        work = Path(directory)
        os.environ |= {"AEGIS_CACHE_DIR": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
        base, data = work / "phi-3.5-mini", work / "data.jsonl"
        copy_template(arguments.template, base, arguments.layers)
        write_base(meta_model(base), base, arguments.device)
        write_long(data, 1_000_000)
        if on_gpu:
            torch.cuda.empty_cache()
        settings = {
            "base_model": str(base),
            "dataset": str(data),
            "device": arguments.device,
            "max_length": arguments.length,
            "max_steps": steps,
            "warmup_steps": 2,
            "annealing_steps": half,
            "learning_rate": 1e-3,
            "logging_steps": LOGGING_STEPS,
            "save_steps": half,
            "heldout_rows": 0,
            "compile": arguments.compile,
            "activation_checkpointing": arguments.checkpointing,
        }
        found = Comparison(Bench(work, settings, on_gpu), half)
        for part in parts:
            getattr(found, part)()
            if arguments.out:
                results = {"versions": versions(), "device": device, "layers": arguments.layers, "settings": settings}
                results |= {"runs": found.told, "gaps": found.gaps, "control": found.control, "checks": found.checks}
                arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{device}, {arguments.length} tokens, {GLOBAL_PASSES} windows a step, {steps} steps")
    for name, told in found.told.items():
        if "tokens_per_second" in told:
            speed, memory = told["tokens_per_second"], told["peak_gib_of_process_0"]
            print(f"{name:<12} {speed:>9.0f} tokens/s {memory:>8} GiB, by nvidia-smi {told['nvidia_smi_gib']}")
    if "killed" in found.told:
        print(f"seconds from the kill to the end  {found.told['killed']['seconds']}")
    for name, value in [*found.gaps.items(), ("control: another seed", found.control)]:
        print(f"largest loss gap, {name:<26}{'-' if value is None else f'{value:.2e}':>12}")
    for name, good in found.checks.items():
        print(f"{'ok    ' if good else 'FAILED'}  {name}")
    return 0 if all(found.checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
