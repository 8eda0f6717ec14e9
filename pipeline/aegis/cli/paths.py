"""The paths that a command names: finds its run, locks it, refuses what is not there, and prints what is replaced."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from aegis import progress
from aegis.errors import UsageError
from aegis.messages import phrase
from aegis.runs import named_paths

if TYPE_CHECKING:  # `aegis --help` must not load it
    from aegis.runs.run import Run


def existing_run(path: Path | None) -> Run:
    """Return the run that `--run` names, by path or by its name in artifacts/; without it, the run used last.

    Raises:
        UsageError: there is no such directory, or it is a model, an adapter or the like.
    """
    from aegis.runs.run import ARTIFACTS, Run

    known = Run.known()
    if path is None:
        if not known:
            raise UsageError("cli.no_runs", artifacts=ARTIFACTS)
        key = "cli.only_run" if len(known) == 1 else "cli.last_run"
        progress.say(phrase(key, root=known[-1].root, count=len(known)))
        return known[-1]
    if not path.is_dir() and (ARTIFACTS / path).is_dir():
        return Run(ARTIFACTS / path)
    if path.is_file():
        raise UsageError("cli.run_is_file", path=path)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file() or any(path.glob("*.gguf")):
        raise UsageError("cli.part_of_run", path=path)
    if not path.is_dir():
        names = ", ".join(str(run.root) for run in reversed(known[-5:]))
        hint = phrase("cli.runs_there", names=names) if known else phrase("cli.run_made")
        raise UsageError("cli.no_run", path=path, hint=hint)
    return Run(path)


def new_run(path: Path | None, base_model: str) -> Run:
    """Return the run that `--run` names, which need not exist; without it, that in artifacts/ named after the base.

    Raises:
        UsageError, EnvironmentFault: as `runs.lock.check_place`; a plan or a dry run refuses what the work would.
    """
    from aegis.runs.lock import check_place
    from aegis.runs.run import Run

    run = Run(path) if path else Run.named_after(base_model)
    check_place(run.root)
    return run


def refuse_absent(*paths: Path | None) -> None:
    """Refuse a path that names nothing; one that is not given is no fault.

    Raises:
        UsageError: there is no such file or folder.
    """
    for path in paths:
        if path is not None and not named_paths.exists(path):
            raise UsageError("cli.no_path", path=path)


def refuse_no_file(path: Path | None) -> None:
    """Refuse a path that names nothing or a folder; one that is not given is no fault.

    Raises:
        UsageError: there is no such file.
    """
    refuse_absent(path)
    if path is not None and path.is_dir():
        raise UsageError("cli.not_a_file", path=path)


def refuse_no_text(path: Path | None) -> None:
    """Refuse a file that is no text, before hours of work that end with it.

    Raises:
        UsageError: it is a folder, or not UTF-8.
    """
    refuse_no_file(path)
    if path is None:
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            while file.read(1 << 20):
                pass
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("cli.no_text", path=path, error=str(error)) from None


def lock_unless_dry_run(run: Run | None, dry_run: bool) -> AbstractContextManager[None]:
    """Lock a run for a command that writes to it; a folder outside of any run needs no lock."""
    return nullcontext() if run is None or dry_run else run.lock()


def announce_overwrite(*places: Path | None, overwrite: bool) -> None:
    """Print what --overwrite is about to replace."""
    from aegis.runs.overwriting import announce

    if overwrite:
        announce([place for place in places if place is not None])
