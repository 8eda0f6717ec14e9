"""A tool's process that is started before its input is there: it loads its libraries, and waits for its arguments."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from aegis.llama_cpp import process
from aegis.llama_cpp._child import WAITING


class PreparedTool:
    """A process for one run of a script by `process.run_tool`; it ends with its `with` block, used or not.

    Args:
        script: what it will run.
        libraries: modules that it imports at once.
        import_from, environment: as in `run_tool`.

    Attributes:
        script: see above.
    """

    def __init__(
        self, script: Path, libraries: Sequence[str], *, import_from: Path, environment: Mapping[str, str | None]
    ) -> None:
        self.script = script
        arguments = [WAITING, str(import_from), str(script), *libraries]
        self._child: subprocess.Popen[bytes] | None = process.start(arguments, import_from, environment)
        self._begun: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def begin(self, part: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes] | None:
        """Let it run its script, and hand it over; None if it has ended or was handed over before.

        Args:
            part, arguments: as in `run_tool`.

        Raises:
            InterruptedError: the `with` block has ended.
        """
        if self._is_over:
            raise InterruptedError
        child, self._child = self._child, None
        if child is None:
            return None
        assert child.stdin is not None
        self._begun = child
        try:
            child.stdin.write(json.dumps([str(part.parent), str(part), *arguments]).encode() + b"\n")
            child.stdin.flush()
        except OSError:
            _drop(child)
            return None
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        child, self._child = self._child, None
        if child is not None:
            _drop(child)
        if self._begun is not None:
            process.end(self._begun)  # nothing is left of a run that the block does not wait for


def _drop(child: subprocess.Popen[bytes]) -> None:
    process.end(child)
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not read by a process that has ended
                pipe.close()
