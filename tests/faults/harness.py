"""Kills a stage at every durable operation, starts it again, and compares the result with an undisturbed run.

The method is that of SQLite's crash tests. First the stage runs once and its operations are numbered: open for write,
write, truncate, fsync, rename, unlink, rmdir and mkdir, which crashpoint.c intercepts in libc, in every process and
language. Then, for each number, the stage runs again in a fresh folder and is killed with SIGKILL before the operation,
in the middle of a write, or after the operation. Everything under a published name must be complete at that moment.
The same command, started again, must end with the same bytes as the undisturbed run, and leave no other file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.demo.base import ensure_demo_base
from aegis.demo.settings import DemoSettings
from aegis.errors import IntegrityError
from aegis.runs.manifest import verify_directory
from aegis.runs.run import Run
from aegis.training.checkpoint import list_steps
from tests.faults.forked import Ended, Forked, strike
from tests.made_once import Once

HERE = Path(__file__).parent
MODES = ("before", "torn", "after", "full")
JOBS = ("train", "merge", "export", "verify", "run")
PUBLISHED = ("pictures", "adapter", "merged", "gguf", "verify", "report")

_TINY = DemoSettings(
    document_count=120,
    conversation_count=200,
    piece_count=900,
    vocab_size=1024,
    intermediate_size=256,
    layer_count=1,
    steps=4,
    warmup_steps=2,
)
_STATE = struct.Struct("6l4096s4096s")
_TIMES = ("tokens_per_second", "peak_bytes", "time")


@dataclass(frozen=True)
class Operation:
    """One durable operation of an undisturbed run: its number, kind, bytes (of a write) and path."""

    number: int
    kind: str
    size: int
    path: str


@dataclass(frozen=True)
class KillPoint:
    job: str
    operation: Operation
    mode: str

    def __str__(self) -> str:
        return f"{self.job} {self.mode} {self.operation.number}: {self.operation.kind} {self.operation.path}"


@dataclass(frozen=True)
class Outcome:
    """The result of a kill point; `fault` is empty if the run was killed there and then gave the same bytes."""

    point: KillPoint
    fault: str

    @property
    def recovered(self) -> bool:
        return not self.fault


class Laboratory:
    """A tiny base, a process to fork from, and an undisturbed run of every job to compare with."""

    def __init__(self, folder: Path, once: Once, *, painted: bool = False) -> None:
        self.folder = folder.resolve()
        self._once = once
        self.base = ensure_demo_base(once("laboratory-base", lambda root: ensure_demo_base(root, _TINY)), _TINY)
        self.data = once("laboratory-data.jsonl", _write_rows)
        self.forked = Forked({"LD_PRELOAD": str(build_shim(self.folder)), "HF_HUB_OFFLINE": "1"}, painted=painted)
        self.shared_cache = {"AEGIS_CACHE_DIR": str(self.folder / "cache")}
        """The variable for commands whose own cache folder no test looks at."""
        self._golden: dict[str, dict[str, str]] = {}
        self._operations: dict[str, list[Operation]] = {}

    def close(self) -> None:
        self.forked.close()

    def operations(self, job: str) -> list[Operation]:
        """Run a job undisturbed, keep its files for comparison, and return its operations in order."""
        if job not in self._operations:
            place = self._fresh(job, "golden")
            log = place / "operations.tsv"
            state = write_state(place, log=log)
            ended = self._aegis(place, state, job)
            assert ended.code == 0, f"{job} undisturbed: {ended.code}\n{ended.output}"
            lines = log.read_text(encoding="utf-8").splitlines()
            found = [line.split("\t", 3) for line in lines]
            self._operations[job] = [Operation(int(n), kind, int(size), path) for n, kind, size, path in found]
            self._golden[job] = _fingerprint(place)
        return self._operations[job]

    def points(self, job: str) -> list[KillPoint]:
        """Return the points before and after every operation, and inside every write of two bytes or more."""
        return [
            KillPoint(job, operation, mode)
            for operation in self.operations(job)
            for mode in ("before", "torn", "after")
            if mode != "torn" or (operation.kind == "write" and operation.size > 1)
        ]

    def full_points(self, job: str) -> list[KillPoint]:
        """Return the operations that need space, from which the disk can be full."""
        growing = ("open", "write", "truncate", "mkdir", "fsync")
        return [KillPoint(job, operation, "full") for operation in self.operations(job) if operation.kind in growing]

    def attempt_full(self, point: KillPoint) -> Outcome:
        """Let the disk be full from a point on and check messages and files; free space, start again, compare."""
        place = self._fresh(point.job, "full")
        try:
            before = set(_fingerprint(place))
            state = write_state(place, target=point.operation.number, mode=MODES.index("full"))
            ended = self._aegis(place, state, point.job)
            shown = ended.code == 3 and re.search("disk is full|No space left", ended.output)
            # the quantizer does not notice that its last bytes were lost; the disk here only plays full
            found_out = ended.code == 7 and "reported success but wrote a damaged file" in ended.output
            if not (shown or found_out) or re.search("^Traceback", ended.output, re.MULTILINE):
                return Outcome(point, f"it ended with {ended.code}\n{ended.output}")
            litter = [name for name in set(_fingerprint(place)) - before if re.search(r"/\.[^/]", name)]
            if litter:
                return Outcome(point, "litter: " + ", ".join(litter))
            return Outcome(point, self._recovery(place, point.job))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def attempt(self, point: KillPoint) -> Outcome:
        """Kill a run at a point, check its files, start it again, and compare."""
        place = self._fresh(point.job, "killed")
        try:
            state = write_state(place, target=point.operation.number, mode=MODES.index(point.mode))
            ended = self._aegis(place, state, point.job)
            if ended.code != -9:
                return Outcome(point, f"it was not killed: it ended with {ended.code}\n{ended.output}")
            return Outcome(point, self._recovery(place, point.job))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def attempt_after(self, job: str, seconds: float) -> tuple[bool, str]:
        """Kill a run after a time; return whether it was still alive, and the fault after its restart."""
        self.operations(job)
        place = self._fresh(job, "killed")
        try:
            ended = self._aegis(place, write_state(place), job, [strike(signal.SIGKILL, after_s=seconds)])
            return ended.code == -9, self._recovery(place, job)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _recovery(self, place: Path, job: str) -> str:
        """Start a killed job again, and return the fault, or ""."""
        if torn := _torn(place):
            return f"torn under its final name: {torn}"
        ended = self._aegis(place, write_state(place), job)
        code, output = ended.code, ended.output
        # asked again for what is there, train says so
        stands = job == "train" and code == 2 and "is finished" in output
        if code != 0 and not stands:
            return f"started again it ended with {code}\n{output}"
        return differences(self._golden[job], _fingerprint(place))

    def _fresh(self, job: str, kind: str) -> Path:
        """Return a folder in the state in which the job begins."""
        place = self.folder / f"{kind}-{job}"
        shutil.rmtree(place, ignore_errors=True)
        if job in ("train", "run"):
            (place / "cache").mkdir(parents=True)
        else:
            shutil.copytree(self.start(job), place)
        return place

    def start(self, job: str) -> Path:
        """Return a run with everything before `job` finished, and an older result of `job` to be replaced."""

        def make(place: Path) -> None:
            (place / "cache").mkdir(parents=True)
            older = {"merge": ["--dtype", "bfloat16"], "export": ["--name", "older"], "verify": ["--tokens", "96"]}
            for step in JOBS[: JOBS.index(job) + 1]:
                changed = older[job] if step == job else []
                ended = self.forked.aegis(place, *self.arguments(step), *changed)
                assert ended.code == 0, ended.output

        return self._once(f"start-{job}", make)

    def _aegis(self, place: Path, state: Path, job: str, blows: Sequence[dict[str, Any]] = ()) -> Ended:
        return self.forked.aegis(place, *self.arguments(job), state=state, blows=blows)

    def arguments(self, job: str) -> list[str]:
        """Return the command line of a job."""
        training = (
            f"--base-model {self.base} --dataset {self.data} --device cpu --max-steps 2 --save-steps 1 "
            "--keep-checkpoints 1 --warmup-steps 1 --annealing-steps 1 --max-length 16 --learning-rate 1e-2 "
            "--logging-steps 1 --heldout-rows 2 --lora-r 2 --keep-windows 8 --keep-every 1"
        ).split()
        exporting = ["--quant", "Q8_0", "--keep-f16"]
        verifying = ["--tokens", "64", "--threads", "1"]
        return {
            "train": ["train", "--run", "run", *training],
            "merge": ["merge", "--run", "run", "--overwrite"],
            "export": ["export-gguf", "--run", "run", *exporting, "--overwrite"],
            "verify": ["verify", "--run", "run", "--device", "cpu", *verifying],
            "run": ["run", "--run", "run", *training, *exporting, *verifying],
        }[job]


def _write_rows(path: Path) -> None:
    rows = [{"text": f"{n}番目の本でござる。春の花は桜です。"} for n in range(24)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def build_shim(folder: Path) -> Path:
    """Compile crashpoint.c."""
    shim = folder / "crashpoint.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(shim), str(HERE / "crashpoint.c"), "-ldl"],
        check=True,
    )
    return shim


def write_state(
    place: Path, *, below: Path | None = None, target: int = 0, mode: int = 0, log: Path | None = None
) -> Path:
    """Write a state file for crashpoint.c in `place`; operations below `below` count (default: `place`).

    The first process that uses the file is killed with the process that reaches the target; without target and log,
    none
    count.
    """
    path = place / "crashpoint.state"
    root = str(below or place) if target or log else ""
    path.write_bytes(_STATE.pack(0, target, mode, 0, 0, 0, root.encode(), str(log or "").encode()))
    return path


def sockets_opened(state: Path) -> int:
    """Return the number of sockets that the processes with a state file opened."""
    return int(_STATE.unpack(state.read_bytes())[5])


def _published(place: Path) -> Iterator[Path]:
    run = Run(place / "run")
    yield from (path for name in PUBLISHED if (path := run.root / name).exists())
    yield from list_steps(run.checkpoints)


def _torn(place: Path) -> str:
    for directory in _published(place):
        try:
            verify_directory(directory)
        except IntegrityError as error:
            return str(error)
    return ""


def _fingerprint(place: Path) -> dict[str, str]:
    """Return path → sha256 of everything in run and cache that must be the same, without times and locks."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if not path.is_file() or path.parent == place or path.name in ("run.lock", "run.pid", ".lock"):
            continue
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            content = "".join(map(_without_times, content.decode().splitlines())).encode()
        if path.parent.name == "report":  # it tells of the training's speed; that it is whole is looked at by itself
            content = b""
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _without_times(line: str) -> str:
    row: dict[str, Any] = json.loads(line)
    return json.dumps({key: value for key, value in row.items() if key not in _TIMES}) + "\n"


def differences(golden: dict[str, str], found: dict[str, str]) -> str:
    shown = [f"missing: {name}" for name in golden.keys() - found.keys()]
    shown += [f"litter: {name}" for name in found.keys() - golden.keys()]
    shown += [f"other bytes: {name}" for name in golden.keys() & found.keys() if golden[name] != found[name]]
    return "\n".join(sorted(shown))
