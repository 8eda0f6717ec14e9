"""Where the time of a whole `aegis run` goes, at the full Phi-3.5-mini shape or for the demo: each stage, each task.

    PYTHONPATH=pipeline:.:tools python tools/bench_run.py --template FOLDER [--layers 2 --device cpu] [--out FILE.json]
    PYTHONPATH=pipeline:.:tools python tools/bench_run.py --demo [--out FILE.json]

`--peer-path PACKAGES` also times the same job by Unsloth, which is in that folder, with llama.cpp's tools by hand.

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes,
drawn on the device. `aegis --json run` runs as a process of its own, with its defaults, the demo's chats and an empty
cache; only the converter is the one that this environment already has. Its events are timed as they arrive. A row is
printed and written to the JSON file when its task ends, so a killed benchmark still shows what it saw. Time between two
tasks is a row too, without a name. What follows `--` goes to `aegis run`. 3.8 B parameters need 35 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmark import measured_on, quiet_and_offline, scratch
from full_size import copy_template, meta_model, write_base

from aegis.config.train_settings import TrainConfig
from aegis.llama_cpp import find_converter

_STAGE = re.compile(r"(train|merge|export|verify|report) → ")
_WORTH_A_ROW_S = 0.5


@dataclass
class Row:
    """A task, or the time between two tasks (no name), in seconds since the command began."""

    stage: str
    task: str
    start: float
    seconds: float

    def line(self) -> str:
        return f"{self.start:8.1f}{self.seconds:8.1f}  {self.stage:<8}{self.task}"


@dataclass
class Timeline:
    """The rows of a run, made from its events in the order of their arrival.

    Attributes:
        stages: seconds by stage; "start" is all before the first.
        silence: the longest time without any event.
    """

    rows: list[Row] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    stage: str = "start"
    silence: float = 0.0
    _heard: float = 0.0
    _free_since: float = 0.0
    _entered: float = 0.0
    _open: dict[str, float] = field(default_factory=dict)

    def take(self, event: dict[str, Any], now: float) -> Iterator[Row]:
        """Yield the rows that end with this event, which arrived at `now`."""
        self.silence, self._heard = max(self.silence, now - self._heard), now
        kind, task = event.get("event"), str(event.get("task"))
        if kind == "begin":
            if not self._open:
                yield from self._row("", self._free_since, now)
            self._open[task] = now
        elif kind == "end" and task in self._open:
            yield from self._row(task, self._open.pop(task), now)
            if not self._open:
                self._free_since = now
        elif kind == "message" and (found := _STAGE.match(str(event.get("text")))):
            yield from self.enter(found[1], now)

    def enter(self, stage: str, now: float) -> Iterator[Row]:
        """End the present stage; yield the rest of its time as a row."""
        if not self._open:
            yield from self._row("", self._free_since, now)
            self._free_since = now
        self.stages[self.stage] = round(self.stages.get(self.stage, 0.0) + now - self._entered, 1)
        self.stage, self._entered = stage, now

    def _row(self, task: str, start: float, end: float) -> Iterator[Row]:
        if end - start >= _WORTH_A_ROW_S:
            row = Row(self.stage, task, round(start, 1), round(end - start, 1))
            self.rows.append(row)
            yield row


def events(lines: Iterable[str], began: float) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield each event with the seconds since the command began; lines that are none are printed."""
    for line in lines:
        if line.startswith("{"):
            yield json.loads(line), time.monotonic() - began
        else:
            print(line.rstrip(), flush=True)


def command(arguments: argparse.Namespace, work: Path) -> list[str]:
    """Make the base, and return the command to time."""
    own = ["--run", str(work / "run"), "--device", arguments.device, *arguments.more]
    if arguments.steps:
        own += ["--max-steps", str(arguments.steps)]
    if arguments.demo:
        own += ["--preset", "demo"]
    else:
        base, began = work / "phi-3.5-mini", time.monotonic()
        copy_template(arguments.template, base, arguments.layers)
        write_base(meta_model(base), base, arguments.device)
        print(f"base of random weights written in {time.monotonic() - began:.1f} s", flush=True)
        own += ["--base-model", str(base), "--dataset", "demo"]
    return [sys.executable, "-m", "aegis", "--json", "run", *own]


def peer_stages(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the same job by Unsloth; return its stages. It has the whole disk: ours is removed by then."""
    search = os.environ | {"PYTHONPATH": os.pathsep.join([arguments.peer_path, os.environ.get("PYTHONPATH", "")])}
    steps = arguments.steps or TrainConfig.model_fields["max_steps"].default
    script = str(Path(__file__).with_name("peer_job.py"))
    with scratch("aegis-peer-", arguments.work) as work:
        wanted = [sys.executable, script, "job", str(arguments.template), str(work), str(steps)]
        with subprocess.Popen(wanted, stdout=subprocess.PIPE, text=True, env=search) as job:
            assert job.stdout is not None
            stages = []
            for event, _ in events(job.stdout, time.monotonic()):
                print(f"{event['seconds']:8.1f}  {event['stage']}", flush=True)
                stages.append(event)
            return stages


def main() -> int:
    """Time the run, print the rows as they end and a table of the stages last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, help="config.json and tokenizer files of a Phi-3.5-mini")
    parser.add_argument("--demo", action="store_true", help="the demo's own job, in place of the full size")
    parser.add_argument("--layers", type=int, help="a smaller model, for a trial")
    parser.add_argument("--steps", type=int, help="training steps; aegis's own default if not given")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="for base and run; cuda, or cpu for the demo")
    parser.add_argument("--work", type=Path, help="where to write; a temporary directory if not given")
    parser.add_argument("--out", type=Path, default=Path("bench_run.json"), help="JSON file for the results")
    parser.add_argument("--peer-path", help="folder with Unsloth's packages: the same job by it, after ours")
    parser.add_argument("more", nargs="*", help="options of aegis run, after --")
    arguments = parser.parse_args()
    if (arguments.template is None) is not arguments.demo:
        parser.error("give either --template or --demo")
    arguments.device = arguments.device or ("cpu" if arguments.demo else "cuda")
    quiet_and_offline()
    results: dict[str, Any] = {**measured_on(), "device": arguments.device, "layers": arguments.layers, "rows": []}
    with scratch("aegis-bench-", arguments.work) as work:
        tree = find_converter()
        os.environ |= {"AEGIS_CACHE_DIR": str(work / "cache"), "LLAMA_CPP_DIR": str(tree), "AEGIS_LANG": "en"}
        # llama.cpp's tools run in other folders
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths if path)
        wanted, timeline = command(arguments, work), Timeline()
        print(f"{'at s':>8}{'took s':>8}  {'stage':<8}task", flush=True)
        began = time.monotonic()
        with subprocess.Popen(wanted, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for event, now in events(child.stdout, began):
                for row in timeline.take(event, now):
                    print(row.line(), flush=True)
                results |= {"rows": [asdict(row) for row in timeline.rows], "stages": timeline.stages, "so_far_s": now}
                arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        whole = time.monotonic() - began
        for row in timeline.enter("", whole):
            print(row.line())
    results |= {"whole_s": round(whole, 1), "silence_s": round(timeline.silence, 1), "stages": timeline.stages}
    results["rows"] = [asdict(row) for row in timeline.rows]
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{'stage':<10}{'seconds':>9}{'share':>8}")
    for stage, seconds in [*timeline.stages.items(), ("whole run", whole)]:
        print(f"{stage:<10}{seconds:>9.1f}{seconds / whole:>8.0%}")
    print(f"longest silence {timeline.silence:.1f} s", flush=True)
    if arguments.peer_path:
        results["peer"] = peer_stages(arguments)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
