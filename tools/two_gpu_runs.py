"""Runs of `aegis train` in one or two processes for bench_two_gpus: killed, stopped, timed, and their rows read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from aegis.errors import IntegrityError
from aegis.runs.run import Run
from aegis.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
SETTLED = 10
"""Steps after which a step takes as long as all later ones: it is compiled and recorded."""


class OutOfTimeError(Exception):
    """There is no time for another run."""


@dataclass
class Ended:
    """A run's end: exit code, wall time, what it wrote, its report, and each GPU's largest memory use in GiB."""

    code: int
    seconds: float
    output: str
    report: dict[str, Any] = field(default_factory=dict)
    gpu_gib: list[float] = field(default_factory=list)

    @property
    def options(self) -> str:
        """The line in which it names the options of a step."""
        found = re.search(r'"text": "(step: [^"]*)"', self.output)
        return found.group(1) if found else ""


def environment(on_gpu: bool, gpus: str) -> dict[str, str]:
    """The environment of a run: no network, NVLink multicast off, and one warm cache of compiled code for all."""
    given = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {
        # absolute, because a confined process runs in a folder of its own
        "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT), *given]),
        "CUDA_VISIBLE_DEVICES": gpus if on_gpu else "",
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "AEGIS_LANG": "en",
    }


@dataclass(frozen=True)
class Bench:
    """What all runs share: a folder, settings of train, forward passes of a step, and when they must have ended."""

    work: Path
    settings: dict[str, Any]
    passes: int
    on_gpu: bool
    deadline: float

    def seconds_left(self, wanted: float) -> float:
        """The seconds until the deadline.

        Raises:
            OutOfTimeError: they are fewer than `wanted`.
        """
        left = self.deadline - time.monotonic()
        if left < wanted:
            raise OutOfTimeError(f"{left:.0f} s are left, and the next run may take {wanted:.0f}")
        return left

    def train(self, processes: int, run: Run, *arguments: str, meanwhile: Watcher | None = None, **other: Any) -> Ended:
        """`aegis train` in one or two processes; `meanwhile` is called with it until it returns True."""
        left = self.seconds_left(30)
        settings = self.settings | {"gradient_accumulation_steps": self.passes // processes} | other
        config = self.work / f"{run.root.name}.toml"
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        config.write_text("[train]\n" + lines, encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", *(["--"] if processes > 1 else [])]
        command += ["aegis", "--json", "train", "--config", str(config), "--run", str(run.root), *arguments]
        log, out = (self.work / f"{run.root.name}.{kind}" for kind in ("log", "out"))
        began = time.monotonic()
        gpus = ",".join(str(number) for number in range(processes))
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.work / "compiled")}
        with log.open("w") as err, out.open("w") as output, Memory(self.on_gpu) as memory:
            child = subprocess.Popen(
                command, env=environment(self.on_gpu, gpus) | cache, stdout=output, stderr=err, start_new_session=True
            )
            try:
                while meanwhile is not None and child.poll() is None and not meanwhile(child, run):
                    time.sleep(0.02)
                    if time.monotonic() - began > left:
                        break
                if meanwhile is not None:
                    began = time.monotonic()
                code = child.wait(max(1, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                end(child)
        seconds = round(time.monotonic() - began, 1)
        ended = Ended(code, seconds, log.read_text() + out.read_text(), _report(out), memory.most)
        print(f"  {run.root.name:<16} exit {code}, {ended.seconds} s, GPUs {memory.most} GiB", flush=True)
        if code and meanwhile is None:
            print(log.read_text()[-3000:], out.read_text()[-1000:], sep="\n", flush=True)
        return ended


def end(child: subprocess.Popen[bytes]) -> None:
    """End a run that is late, with all its processes."""
    if child.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(child.pid).children(recursive=True)
        for process in [psutil.Process(child.pid), *below]:
            with suppress(psutil.Error):
                process.kill()
    child.wait()


Watcher = Callable[[subprocess.Popen[bytes], Run], bool]


def kill_second(after: int) -> Watcher:
    """Kill process 1 of a run once step `after` is logged."""

    def watch(child: subprocess.Popen[bytes], run: Run) -> bool:
        if max(losses(run), default=0) < after:
            return False
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(child.pid).children(recursive=True):
                with suppress(psutil.Error):
                    # its compile workers have the same variables, and a parent of their own
                    if process.environ().get("RANK") == "1" and process.ppid() == child.pid:
                        process.kill()
        return True

    return watch


def stop(after: int) -> Watcher:
    """Ask a run of one process to stop once step `after` is logged, as Ctrl-C does."""

    def watch(child: subprocess.Popen[bytes], run: Run) -> bool:
        if max(losses(run), default=0) < after:
            return False
        child.send_signal(signal.SIGINT)
        return True

    return watch


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
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.5):
            with suppress(OSError):
                listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
                now = [round(int(line) / 1024, 2) for line in listed.split() if line.isdigit()]
                self.most = [max(pair) for pair in zip(now, self.most or now, strict=False)]


def _report(out: Path) -> dict[str, Any]:
    """The report in the last line of `aegis --json`, if it got so far."""
    for line in reversed(out.read_text(encoding="utf-8").splitlines()):
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(line).get("report") or {}
            if found:
                return found
    return {}


def rows(run: Run) -> list[dict[str, Any]]:
    """What a run logged so far."""
    if not run.metrics.is_file():
        return []
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def losses(run: Run) -> dict[int, float]:
    """Step → task loss."""
    return {row["step"]: row["task_loss"] for row in rows(run)}


def gap(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """The largest difference between the losses at the steps both logged; None if there is none."""
    return max((abs(ours[step] - theirs[step]) for step in ours.keys() & theirs.keys()), default=None)


def speed_of(run: Run) -> float:
    """The median over the logging intervals after the first steps; of a short run, over all of them."""
    settled = [row["tokens_per_second"] for row in rows(run) if row["step"] > SETTLED]
    return statistics.median(settled or [row["tokens_per_second"] for row in rows(run)] or [0])


def newest_step(run: Run) -> int | None:
    """The newest whole checkpoint's step."""
    with suppress(IntegrityError):
        found = checkpoint.newest_whole(run.checkpoints)
        return checkpoint.step_of(found[0]) if found else None
    return None


def copied(source: Run, target: Run) -> Run:
    """A copy of a run."""
    shutil.copytree(source.root, target.root)
    return target
