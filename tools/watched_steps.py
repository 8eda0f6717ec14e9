"""Times the steps of a rehearsal or a benchmark, and samples the memory of the processes that do them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_SAMPLE_S = 0.2
ROLES = {"convert_hf_to_gguf": "converter", "_quantize_worker": "quantizer"}


@dataclass
class Row:
    """What one role ("" is aegis itself) took in a step; `own_bytes` leaves out mapped files where the system tells."""

    step: str
    role: str
    seconds: float = 0
    rss_bytes: int = 0
    own_bytes: int = 0
    disk_bytes: int = 0

    def line(self) -> str:
        """The row as people read it, in GB."""
        sizes = "".join(f"{size / 1e9:9.2f}" for size in (self.rss_bytes, self.own_bytes, self.disk_bytes))
        return f"{self.step:<20}{self.role:<11}{self.seconds:9.1f}{sizes}"


@dataclass
class Record:
    """What was seen: a row for each role of each step, facts for people, and the checks that failed."""

    work: Path
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def check(self, name: str, seen: object, good: bool) -> None:
        """Keep what was seen, and whether it is as it must be."""
        self.facts[name] = seen
        if not good:
            self.failed.append(f"{name}: {seen}")
        print(f"  {'ok    ' if good else 'FAILED'} {name}: {seen}", flush=True)

    @contextmanager
    def step(self, name: str, pid: int | None = None) -> Iterator[None]:
        """Time a step, and sample the memory of the process that does it (this one if not given) and its children."""
        main = psutil.Process(pid)
        rows = {"": Row(name, "")}
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(_SAMPLE_S):
                _sample(main, rows)
                rows[""].disk_bytes = max(rows[""].disk_bytes, folder_bytes(self.work))

        watcher = threading.Thread(target=watch, daemon=True)
        start = time.monotonic()
        watcher.start()
        try:
            yield
        finally:
            rows[""].seconds = round(time.monotonic() - start, 1)
            stop.set()
            watcher.join()
        self.rows += rows.values()
        print(*(row.line() for row in rows.values()), sep="\n", flush=True)


def _sample(main: psutil.Process, rows: dict[str, Row]) -> None:
    with suppress(psutil.Error):
        for process in (main, *main.children(recursive=True)):
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                role = next((role for script, role in ROLES.items() if script in command), "")
                row = rows.setdefault(role, Row(rows[""].step, role))
                if role:
                    row.seconds = round(time.time() - process.create_time(), 1)
                memory = process.memory_info()
                row.rss_bytes = max(row.rss_bytes, memory.rss)
                row.own_bytes = max(row.own_bytes, memory.rss - getattr(memory, "shared", 0))


def folder_bytes(folder: Path) -> int:
    """The bytes of all files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone or renamed since it was listed
                total += Path(parent, name).stat().st_size
    return total
