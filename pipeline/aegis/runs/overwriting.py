"""Names the files that --overwrite deletes before it happens, and refuses to train in a run that has a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aegis import progress
from aegis.errors import IntegrityError, UsageError
from aegis.messages import phrase
from aegis.runs.facts import AdapterFacts
from aegis.runs.foreign import first_names
from aegis.runs.publish import refuse_existing
from aegis.runs.run import Run


def announce(places: Sequence[Path]) -> None:
    """Print the existing files and folders among `places`, which the command is about to replace."""
    found = [_described(place) for place in places if place.exists()]
    if found:
        progress.warn(phrase("overwriting.replaces", places="\n  ".join(found)))


def places_of_training(run: Run) -> list[Path]:
    """Return the files and folders that a training which starts over removes from its run."""
    return [run.checkpoints, run.metrics, run.answers, run.kept, run.pictures, run.adapter]


def refuse_finished(run: Run, *, overwrite: bool) -> None:
    """Refuse to train in a run that has a result.

    Raises:
        UsageError: it has one; the message has its steps, the next command, and what --overwrite would delete.
    """
    if overwrite or not run.adapter.is_dir():
        refuse_existing(run.adapter, overwrite=overwrite)
        return
    try:
        steps = AdapterFacts.read(run.adapter).result.steps
    except IntegrityError:
        refuse_existing(run.adapter, overwrite=False)
        return
    names = ", ".join(place.name for place in places_of_training(run) if place.exists())
    raise UsageError("overwriting.finished", root=run.root, steps=steps, names=names)


def _described(place: Path) -> str:
    if not place.is_dir():
        return str(place)
    return f"{place}: {first_names(sorted(path.name for path in place.iterdir()))}"
