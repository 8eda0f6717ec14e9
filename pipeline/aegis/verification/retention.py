"""What a training left of its base: how far base and result are apart on text that nobody trained on, in one sentence.

KL(base ‖ result) and both losses, each also at its best temperature: a gate that is not counter-scaled sharpens the
logits, and a distance that goes away when they are divided by a number is only that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from aegis.data.kept import heldout_of
from aegis.data.packing import Windows
from aegis.errors import UsageError
from aegis.messages import Bilingual, bilingual, phrase
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run
from aegis.verification import texts
from aegis.verification.divergence import Recording, best_temperature, compare, mean_kl, perplexity, record
from aegis.verification.heldout_text import Origin, Sample
from aegis.verification.logits import torch_logits
from aegis.verification.run_checks import Checks

TextName = Literal["kept", "other"]
"""Kept windows that were never trained on, and text of nobody's training."""
_NAMES: dict[TextName, str] = {"kept": "retention.kept", "other": "retention.other"}
_TITLES = {
    ("base", "kept"): "verify.base_on_kept",
    ("base", "other"): "verify.base_on_other",
    ("result", "kept"): "verify.result_on_kept",
    ("result", "other"): "verify.result_on_other",
}
_ALIKE, _MOVED = 0.05, 0.3
"""Mean KL, nats: up to the first a result answers as its base does; beyond the second it does not any more."""
_NO_GAIN = 0.005
"""Nats per token, which the sentence rounds to 0.00."""


@dataclass(frozen=True)
class BaseRetention:
    """Base and result on one text: KL(base ‖ result), mean per token in nats, and perplexities.

    Attributes:
        text: which one.
        tokens: that were predicted.
        max_kl: the bound that was asked for.
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
        """What the text is called."""
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
        """What is left of that when each model has its best temperature."""
        return math.log(self.result_tempered / self.base_tempered)

    def as_json(self) -> dict[str, Any]:
        """As a report has it."""
        return {**asdict(self), "ok": self.ok, "lost": self.lost, "lost_tempered": self.lost_tempered}

    @classmethod
    def measure(cls, text: TextName, base: Recording, result: Recording, max_kl: float | None = None) -> BaseRetention:
        """Compare two recordings of the same sequences.

        Raises:
            IntegrityError: their vocabularies differ.
        """
        temperatures = best_temperature(base), best_temperature(result)
        return cls(
            text,
            base.scored,
            compare(base, result).mean_kl,
            mean_kl(base, result, temperatures),
            perplexity(base),
            perplexity(result),
            perplexity(base, temperatures[0]),
            perplexity(result, temperatures[1]),
            *temperatures,
            max_kl,
        )


def kept_windows(run: Run, max_kept_kl: float | None, checks: Checks) -> Windows | None:
    """The kept windows that training never saw; None where it kept nothing, and where they failed their check.

    Raises:
        UsageError: there are none, and there is a bound on them.
    """
    found = None
    if "kept" in read_manifest(run.adapter).inputs:
        with checks.check(bilingual("verify.kept_text"), "train") as tell:
            found = heldout_of(run)
            tell(bilingual("verify.kept_windows", count=0 if found is None else len(found)))
    elif max_kept_kl is not None:
        raise UsageError("verify.kept_nothing")
    return found


@dataclass
class Witnesses:
    """The texts on which base and result are compared, and what each said of them.

    Attributes:
        work: folder for recordings.
    """

    work: Path
    texts: dict[TextName, list[list[int]]]
    _recorded: dict[tuple[str, TextName], Recording] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Path, sample: Sample, kept: Windows | None, tokens: int, limit: int) -> Witnesses:
        """The other text, and of kept windows `tokens` tokens, each piece cut to `limit`."""
        pieces = [] if kept is None else [piece[:limit].tolist() for piece in kept.pieces()]
        found: dict[TextName, list[list[int]]] = {"kept": texts.take(pieces, tokens), "other": sample.other}
        return cls(work, {name: sequences for name, sequences in found.items() if sequences})

    def record(self, name: Literal["base", "result"], model: Any) -> None:
        """Run each text through a transformers model.

        Raises:
            IntegrityError: it gave NaN or Inf.
        """
        for text, sequences in self.texts.items():
            outputs = torch_logits(model, sequences, phrase(_TITLES[name, text]))
            self._recorded[name, text] = record(self.work / f"{name}-{text}.npy", outputs, sequences)

    def measured(self, max_kept_kl: float | None) -> tuple[BaseRetention, ...]:
        """Both models on each text, once both were recorded."""
        bounds: dict[TextName, float | None] = {"kept": max_kept_kl, "other": None}
        return tuple(
            BaseRetention.measure(text, self._recorded["base", text], self._recorded["result", text], bounds[text])
            for text in self.texts
        )


def sentence(
    retained: Sequence[BaseRetention], perplexities: Mapping[str, float], origin: Origin, vocab_size: int
) -> Bilingual | None:
    """How near the result's answers are to the base's, and what it learned; None where nothing of it was measured.

    Args:
        perplexities: of "base" and "merged" on the sample.
        origin: where the sample comes from. A text given with --text is its own other text, and says nothing of
            how the result answers elsewhere.
    """
    # a text that the base predicts no better than chance shows nothing of what it knew
    readable = {found.text: found for found in retained if found.base < vocab_size}
    judge = readable.get("kept") or (readable.get("other") if origin != "text" else None)
    if judge is None:
        return None
    key = "retention.far"
    if judge.kl <= _MOVED:
        key = "retention.alike" if judge.kl <= _ALIKE else "retention.moved"
    said = bilingual(key, kl=judge.kl, text=judge.name)
    if origin == "filled" or perplexities["base"] >= vocab_size:
        return bilingual("retention.answers", answers=said)
    gained = math.log(perplexities["base"] / perplexities["merged"])
    key = "retention.better" if gained > 0 else "retention.worse"
    if abs(gained) < _NO_GAIN:
        key = "retention.as_well"
    own = bilingual("retention.trained_text" if origin == "trained" else "retention.your_text")
    learned = bilingual(key, text=own, nats=abs(gained))
    return bilingual("retention.answers_and_knows", answers=said, knows=learned)
