"""Runs uv and other programs for the set-up: their output is in the log, a failure has its cure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from startup import advice
from startup.children import child_environment, run_logged
from startup.console import StartError, Step
from startup.language import either


class Runner:
    """Runs programs in `root` with their output in `log`, and with these environment variables."""

    def __init__(self, root: Path, log: Path, **variables: str) -> None:
        self._root = root
        self.log = log
        self._variables = variables
        log.write_bytes(b"")

    def run(self, step: Step, argv: Sequence[str | Path], where: Callable[[Path], str] = advice.where_uv_is) -> int:
        """Run `argv` and return its exit code; `where` reads from the log how far it is."""
        return run_logged(
            argv,
            log=self.log,
            cwd=self._root,
            environment=child_environment(**self._variables),
            tick=lambda: step.tick(where(self.log)),
        )

    def require(
        self, step: Step, argv: Sequence[str | Path], what: str, where: Callable[[Path], str] = advice.where_uv_is
    ) -> None:
        """Run `argv`; as `run`.

        Raises:
            StartError: it failed; says `what`, the log's end, and what can be done.
        """
        code = self.run(step, argv, where)
        if code != 0:
            step.clear()
            raise StartError(
                either(f"{what} (exit code {code}). The log ends with:", f"{what}（終了コード {code}）。ログの末尾:")
                + f"\n\n{advice.tail(self.log)}\n",
                f"{advice.cause(self.log)}\n" + either(f"The complete log: {self.log}", f"ログ全体: {self.log}"),
                code=7,
            )
