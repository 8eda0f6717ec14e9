"""Runs uv and other programs for the set-up: their output is in the log, a failure has its cure."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from startup import advice
from startup.children import WINDOWS, child_environment, end_group, exit_code
from startup.console import StartError, Step
from startup.language import either


class Runner:
    """Runs programs in `root` with their output in `log`, and with these environment variables."""

    def __init__(self, root: Path, log: Path, **variables: str) -> None:
        self._root = root
        self.log = log
        self._variables = variables
        log.write_bytes(b"")

    def run(self, step: Step, argv: Sequence[str | Path], where: Callable[[Path], str] | None = None) -> int:
        """Run `argv`, with signs of life of `step` and `where` it is by the log (`advice.Where`); return the exit code.

        If we are stopped meanwhile, the program and all that it started are ended.
        """
        where = where or advice.Where()
        with self.log.open("ab") as sink:
            sink.write(("\n$ " + " ".join(map(str, argv)) + "\n").encode("utf-8"))
            sink.flush()
            process = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self._root,
                env=child_environment(**self._variables),
                start_new_session=not WINDOWS,  # a group of its own: uv, cmake and compilers end together
                close_fds=WINDOWS,  # elsewhere the child keeps the set-up's lock open, see only_one
            )
        try:
            while True:
                try:
                    return exit_code(process.wait(0.5))
                except subprocess.TimeoutExpired:
                    step.tick(where(self.log))
        except BaseException:
            end_group(process)
            raise

    def require(
        self, step: Step, argv: Sequence[str | Path], what: str, where: Callable[[Path], str] | None = None
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
