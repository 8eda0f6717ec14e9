"""The report of a training: of one that has just ended, or of a finished adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis.runs.facts import AdapterFacts, TrainResult
from aegis.training import memory
from aegis.training.inputs import TrainingInputs
from aegis.training.memory import MemoryParts
from aegis.training.outcome import LoopOutcome
from aegis.training.state import TrainState


@dataclass(frozen=True)
class TrainReport:
    """The result of a training; its speed is without the first steps, which took `start_seconds`.

    Attributes:
        steps: the step whose adapter and soul were saved.
        keep_kl: the value of the last step with kept text until then; None without any.
        planned_steps: number of steps of the complete training.
        passes: how often the complete training sees the data.
    """

    adapter: Path
    steps: int
    planned_steps: int
    passes: float
    resumed_from: int
    loss: float | None
    heldout_loss: float | None
    keep_kl: float | None
    alpha: float
    gate: float
    trainable_parameters: int
    processes: int
    tokens_per_second: float | None
    start_seconds: float
    memory: MemoryParts | None

    @property
    def result(self) -> TrainResult:
        """The part of the result that does not depend on interruptions."""
        return TrainResult(**{name: getattr(self, name) for name in TrainResult.model_fields})

    @classmethod
    def of(
        cls,
        adapter: Path,
        inputs: TrainingInputs,
        state: TrainState,
        outcome: LoopOutcome,
        *,
        resumed_from: int = 0,
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> TrainReport:
        """Make the report of a training that has just ended; `rows` are its metrics from the first step."""
        alpha = state.soul.alpha.detach()
        return cls(
            adapter=adapter,
            steps=outcome.step,
            planned_steps=inputs.config.max_steps,
            passes=inputs.passes,
            resumed_from=resumed_from,
            loss=outcome.loss,
            heldout_loss=outcome.heldout_loss,
            keep_kl=_last_keep_kl(rows, outcome),
            alpha=alpha.item(),
            gate=torch.sigmoid(alpha).item(),
            trainable_parameters=sum(p.numel() for p in state.parameters().values() if p.requires_grad),
            processes=inputs.group.world_size,
            tokens_per_second=outcome.tokens_per_second,
            start_seconds=outcome.start_seconds,
            memory=memory.by_part(state, alpha.device),
        )

    @classmethod
    def read(cls, adapter: Path, inputs: TrainingInputs) -> TrainReport:
        """Read the report of a finished training, without loss, speed and memory, which are not recorded."""
        result = TrainResult(**inputs.group.broadcast(lambda: AdapterFacts.read(adapter).result.model_dump()))
        return cls(
            adapter=adapter,
            planned_steps=inputs.config.max_steps,
            passes=inputs.passes,
            resumed_from=result.steps,
            loss=None,
            processes=inputs.group.world_size,
            tokens_per_second=None,
            start_seconds=0.0,
            memory=None,
            **dict(result),
        )


def _last_keep_kl(rows: Sequence[Mapping[str, Any]], outcome: LoopOutcome) -> float | None:
    """Return keep_kl of the last step with kept text; only the rows have it if that step was before a resumption."""
    until = [row for row in rows if row["step"] <= outcome.step]
    return next((row["keep_kl"] for row in reversed(until) if row.get("keep_kl") is not None), outcome.keep_kl)
