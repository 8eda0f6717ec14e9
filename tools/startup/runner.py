"""Runs uv and the environment's Python for the set-up: their output is in the log, a failure has its cure."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from startup import advice, llama, torch_build
from startup.children import WINDOWS, child_environment, run_logged
from startup.console import StartError, Step
from startup.language import either
from startup.pip_settings import PipSettings


class Place(Protocol):
    """What of the environment the installer needs (`environment.Environment`)."""

    root: Path
    extra: str
    folder: Path
    python: Path
    constraints: Path
    own: Path
    log: Path

    def usable(self) -> Path | None: ...
    def mark_made(self) -> None: ...
    def clear(self) -> None: ...


class Runner:
    """Runs programs for a set-up of `place`.

    Args:
        settings: pip's settings, which uv gets too.
        common: whether a llama.cpp that is compiled has the library that its imatrix is linked with.
        hold: the lock's file descriptor, which the programs inherit.
    """

    def __init__(self, place: Place, settings: PipSettings, *, common: bool, hold: int) -> None:
        self._place = place
        self._settings = settings
        self._common = common
        self._hold = hold
        self.uv = Path()

    def pip_argv(self, arguments: Sequence[str | Path]) -> list[str | Path]:
        """Return the command of `uv pip install` with these arguments."""
        # -v because only then does uv let the compiler's progress through
        own = [*llama.build_settings(common=self._common), *self._settings.flags]
        return [self.uv, "pip", "install", "-v", "--python", self._place.python, *own, *arguments]

    def pip(
        self,
        step: Step,
        arguments: Sequence[str | Path],
        *,
        what: str,
        where: Callable[[Path], str] = advice.where_uv_is,
    ) -> None:
        """Run `uv pip install`; as `require`."""
        self.require(step, self.pip_argv(arguments), what, where)

    def _variables(self) -> Mapping[str, str]:
        extra = {"PYTHONUNBUFFERED": "1", "PATH": torch_build.search_path()}
        extra.update(self._settings.environment)
        if not os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL"):
            extra["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count() or 1)
        if not WINDOWS:  # there, the system's own folder has the shorter path
            extra["TMPDIR"] = str(self._place.own / "tmp")
        return extra

    def run(self, step: Step, argv: Sequence[str | Path], where: Callable[[Path], str] = lambda log: "") -> int:
        """Run `argv` with its output in the log and return its exit code; as `require`."""
        return run_logged(
            argv,
            log=self._place.log,
            cwd=self._place.root,
            environment=child_environment(**self._variables()),
            tick=lambda: step.tick(where(self._place.log)),
            hold=self._hold,
        )

    def require(
        self, step: Step, argv: Sequence[str | Path], what: str, where: Callable[[Path], str] = lambda log: ""
    ) -> None:
        """Run `argv` with its output in the log, from which `where` reads how far it is.

        Raises:
            StartError: it failed; shows the log's end and what can be done.
        """
        code = self.run(step, argv, where)
        if code != 0:
            step.clear()
            log = self._place.log
            raise StartError(
                either(f"{what} (exit code {code}). The log ends with:", f"{what}（終了コード {code}）。ログの末尾:")
                + f"\n\n{advice.tail(log)}\n",
                f"{advice.cause(log)}\n" + either(f"The complete log: {log}", f"ログ全体: {log}"),
                code=7,
            )
