"""Watches the held-out loss: warns when it has turned, and finds the step at which it was lowest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from aegis import progress
from aegis.messages import phrase

_RISE = 1.01
"""A loss is above the best one if it is at least one percent higher; less is noise on 64 windows."""
_IN_A_ROW = 2


class HeldoutWatch:
    """Warns when the held-out loss has been above its best value twice in a row.

    Another warning needs a loss in between that was not above it.
    """

    def __init__(self) -> None:
        self._best, self._best_step = math.inf, 0
        self._above = 0

    def add(self, step: int, loss: float) -> None:
        """Record the loss after `step` steps."""
        if loss < self._best:
            self._best, self._best_step = loss, step
        self._above = self._above + 1 if loss > _RISE * self._best else 0
        if self._above == _IN_A_ROW:
            progress.warn(
                phrase("train.heldout_turned", best=self._best, best_step=self._best_step, loss=loss, step=step)
            )


def best_step(rows: Iterable[Mapping[str, Any]], save_steps: int, last: int, first: int = 0) -> int | None:
    """Return the step of the checkpoint with the lowest held-out loss, the earliest of equal ones; None without any.

    An interrupted training saves between two regular checkpoints; such a step does not count, because an uninterrupted
    training would not have it.

    Args:
        rows: the rows of metrics.jsonl.
        last: the training's last step, which is saved too.
        first: a step after which only the losses count: before a finish, they are of weights that do not ship.
    """
    found = {
        int(row["step"]): float(row["heldout_loss"])
        for row in rows
        if row.get("heldout_loss") is not None
        and row["step"] > first
        and (row["step"] % save_steps == 0 or row["step"] == last)
    }
    return min(found, key=lambda step: (found[step], step)) if found else None
