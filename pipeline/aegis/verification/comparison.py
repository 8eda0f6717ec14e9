"""Records the models of a verification one after the other, and compares neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aegis import progress
from aegis.messages import phrase
from aegis.verification import divergence
from aegis.verification.divergence import Logits, Recording
from aegis.verification.findings import NO_BOUNDS, Bounds, Divergence
from aegis.verification.heldout_text import Sample
from aegis.verification.rounding import finish_bounds, rounding_bounds
from aegis.verification.verdict import Nearness, Step


@dataclass
class Comparison:
    """The models' logits on the same token ids, and the steps between two of them.

    Attributes:
        work: folder for the logits.
        layers: number of decoder layers, on which the bounds of rounding depend.
        device: where the models are compared.
    """

    work: Path
    sample: Sample
    layers: int
    device: torch.device
    models: dict[str, Recording] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    _bar: progress.Task | None = None
    _before: float = 0

    @contextmanager
    def shown(self, models: int) -> Iterator[None]:
        """Show a bar of the recorded tokens of `models` models while the block runs."""
        total = models * sum(map(len, self.sample.compared))
        with progress.task(phrase("verify.running_models"), total, "token") as bar:
            bar.advance(self._before)
            self._bar = bar
            yield

    def advance(self, tokens: float) -> None:
        """Count the tokens of a recorded sequence, also from another thread, and before the bar is shown."""
        if self._bar is None:
            self._before += tokens
        else:
            self._bar.advance(tokens)

    def record(self, name: str, outputs: Iterable[Logits]) -> None:
        """Record a model.

        Raises:
            IntegrityError: it returned NaN or Inf, or another number of positions.
        """
        path, sequences = self.work / f"{name}.npy", self.sample.compared
        self.models[name] = divergence.record(path, self._counted(outputs), sequences, self.device)

    def step(self, before: str, after: str, stage: str, max_kl: float | None) -> None:
        """Compare two models that differ by a change of precision."""
        bounds = NO_BOUNDS if max_kl is None else Bounds(mean_kl=max_kl)
        self.steps.append(Step(f"{before} → {after}", stage, self._found(before, after), bounds))

    def rounding(self, before: str, after: str, stage: str, rounded: torch.dtype) -> None:
        """Compare two models that differ by rounding to a dtype and nothing else."""
        found = self._found(before, after)
        bounds = rounding_bounds(found, rounded, self.layers)
        self.steps.append(Step(f"{before} → {after}", stage, found, bounds, rounding=True))

    def finish(self, name: str) -> None:
        """Compare the trained model with the file whose weights its training ended with."""
        found = self._found("trained", name)
        self.steps.append(Step(f"trained → {name}", "quantize", found, finish_bounds(found), finish=True))

    def nearness(self, name: str, of_base: float) -> Nearness:
        """Return how near a quantized file is to the trained model; `of_base` is the base's mean KL from it."""
        known = {step.name: step.found for step in self.steps}
        shipped = known.get(f"trained → {name}") or self._found("trained", name)
        widening, rounding = known["trained → wide"], known[f"f16 → {name}"]
        return Nearness(name, shipped.mean_kl, of_base, widening.mean_kl, rounding.mean_kl)

    def _found(self, before: str, after: str) -> Divergence:
        return divergence.compare(self.models[before], self.models[after])

    def _counted(self, outputs: Iterable[Logits]) -> Iterator[Logits]:
        for logits in outputs:
            yield logits
            self.advance(len(logits))
