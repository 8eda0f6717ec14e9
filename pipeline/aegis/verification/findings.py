"""What a verification found, as its report records it: how far two models are apart, bounds, checks, what was kept.

It loads without torch, since the commands that only read a report need none.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from aegis.messages import Bilingual, bilingual

TextName = Literal["kept", "other"]
"""Held-out kept windows, and text that nobody trained on."""
_NAMES: dict[TextName, str] = {"kept": "retention.kept", "other": "retention.other"}


@dataclass(frozen=True)
class Divergence:
    """The difference between a reference p and a model q over all positions; KL is KL(p‖q) in nats.

    Attributes:
        top1: fraction of positions with the same most likely token.
        max_delta: the largest difference between two logits.
        positions: number of compared positions.
        scale: the standard deviation of the reference's logits over the vocabulary, root mean square over positions.
        flip_lead: the largest lead, in logits, of the reference's most likely token over the model's, where the two
            differ.
    """

    mean_kl: float
    p99_kl: float
    max_kl: float
    top1: float
    max_delta: float
    positions: int = 0
    scale: float = 0.0
    flip_lead: float = 0.0

    @property
    def flips(self) -> float:
        """Fraction of positions with another most likely token."""
        return 1 - self.top1


@dataclass(frozen=True)
class Bounds:
    """Upper bounds of one comparison; None for no bound.

    Attributes:
        mean_kl, p99_kl, max_kl: in nats.
        flips: fraction of positions with another most likely token.
        flip_lead: a most likely token with a larger lead than this, in logits, must stay the most likely one.
    """

    mean_kl: float | None = None
    p99_kl: float | None = None
    max_kl: float | None = None
    flips: float | None = None
    flip_lead: float | None = None

    def broken(self, found: Divergence) -> list[str]:
        """Return the names of the bounds that a comparison exceeds."""
        return [
            name
            for name in ("mean_kl", "p99_kl", "max_kl", "flips", "flip_lead")
            if (bound := getattr(self, name)) is not None and getattr(found, name) > bound
        ]


NO_BOUNDS = Bounds()


@dataclass(frozen=True)
class Check:
    """The result of one check, and the stage that is at fault if it failed."""

    name: Bilingual
    stage: str
    ok: bool
    detail: Bilingual

    def as_json(self) -> dict[str, Any]:
        """Return the entry of a report."""
        return {
            "name": self.name.recorded(),
            "stage": self.stage,
            "ok": self.ok,
            "detail": self.detail.recorded(),
        }


@dataclass(frozen=True)
class BaseRetention:
    """Base and result on one text: mean KL(base ‖ result) in nats per token, and perplexities.

    Attributes:
        text: the kind of text.
        tokens: number of predicted tokens.
        kl_tempered, base_tempered, result_tempered: the values with each model at its best temperature.
        max_kl: the bound that the user set, or None.
    """

    text: TextName
    tokens: int
    kl: float
    kl_tempered: float
    base: float
    result: float
    base_tempered: float
    result_tempered: float
    base_temperature: float
    result_temperature: float
    max_kl: float | None = None

    @property
    def name(self) -> Bilingual:
        """The text's name in both languages."""
        return bilingual(_NAMES[self.text])

    @property
    def ok(self) -> bool:
        return self.max_kl is None or self.kl <= self.max_kl

    @property
    def lost(self) -> float:
        """Nats per token by which the result predicts the text worse than the base; below 0 it is better."""
        return math.log(self.result / self.base)

    @property
    def lost_tempered(self) -> float:
        """`lost` with each model at its best temperature."""
        return math.log(self.result_tempered / self.base_tempered)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of a report."""
        return {**asdict(self), "ok": self.ok, "lost": self.lost, "lost_tempered": self.lost_tempered}
