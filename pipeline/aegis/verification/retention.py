"""Measures how far a training moved the result from its base on text that nobody trained on, and says it in a sentence.

It measures KL(base ‖ result) and both losses, each also at its best temperature: a gate without counter-scale sharpens
the logits, and a temperature removes such a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aegis.data.kept import heldout_of
from aegis.data.packing import Windows
from aegis.errors import UsageError
from aegis.messages import Bilingual, bilingual, phrase
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run
from aegis.verification import token_sequences
from aegis.verification.divergence import Recording, best_temperature, compare, mean_kl, perplexity, record
from aegis.verification.findings import BaseRetention, TextName
from aegis.verification.heldout_text import Origin, Sample
from aegis.verification.logits import torch_logits
from aegis.verification.run_checks import Checks

_TITLES = {
    ("base", "kept"): "verify.base_on_kept",
    ("base", "other"): "verify.base_on_other",
    ("result", "kept"): "verify.result_on_kept",
    ("result", "other"): "verify.result_on_other",
}
_ALIKE, _MOVED = 0.05, 0.3
"""Mean KL in nats: up to the first, a result answers like its base; beyond the second, it answers differently."""
_NO_GAIN = 0.005
"""Nats per token, which the sentence rounds to 0.00."""


def measured(text: TextName, base: Recording, result: Recording, max_kl: float | None = None) -> BaseRetention:
    """Compare two recordings of the same sequences.

    Raises:
        IntegrityError: their vocabularies differ.
    """
    temperatures = best_temperature(base), best_temperature(result)
    return BaseRetention(
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
    """Return the held-out kept windows; None if the training had no kept text, or if they failed their check.

    Raises:
        UsageError: the training had no kept text, and `max_kept_kl` is set.
    """
    found = None
    if "kept" in read_manifest(run.adapter).inputs:
        with checks.check(bilingual("verify.kept_text"), "train") as detail:
            found = heldout_of(run)
            detail(bilingual("verify.kept_windows", count=0 if found is None else len(found)))
    elif max_kept_kl is not None:
        raise UsageError("verify.kept_nothing")
    return found


@dataclass
class Witnesses:
    """The texts on which base and result are compared, and the recorded logits of both.

    Attributes:
        work: folder for recordings.
        texts: token ids by kind of text.
    """

    work: Path
    texts: dict[TextName, list[list[int]]]
    _recorded: dict[tuple[str, TextName], Recording] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Path, sample: Sample, kept: Windows | None, tokens: int, limit: int) -> Witnesses:
        """Take the sample's other text, and `tokens` tokens of the kept windows, each piece cut to `limit`."""
        pieces = [] if kept is None else [piece[:limit].tolist() for piece in kept.pieces()]
        found: dict[TextName, list[list[int]]] = {"kept": token_sequences.take(pieces, tokens), "other": sample.other}
        return cls(work, {name: sequences for name, sequences in found.items() if sequences})

    def record(self, name: Literal["base", "result"], model: Any) -> None:
        """Run each text through a transformers model and record its logits.

        Raises:
            IntegrityError: the model returned NaN or Inf.
        """
        for text, sequences in self.texts.items():
            outputs = torch_logits(model, sequences, phrase(_TITLES[name, text]))
            self._recorded[name, text] = record(self.work / f"{name}-{text}.npy", outputs, sequences, model.device)

    def measured(self, max_kept_kl: float | None) -> tuple[BaseRetention, ...]:
        """Compare the two models on each text; both must be recorded."""
        bounds: dict[TextName, float | None] = {"kept": max_kept_kl, "other": None}
        return tuple(
            measured(text, self._recorded["base", text], self._recorded["result", text], bounds[text])
            for text in self.texts
        )


def sentence(
    retained: Sequence[BaseRetention], perplexities: Mapping[str, float], origin: Origin, vocab_size: int
) -> Bilingual | None:
    """Describe how near the result's answers are to the base's, and what it learned; None if neither was measured.

    Args:
        perplexities: of "base" and "merged" on the sample.
        origin: the sample's origin. With --text, the other text is the same text, and shows nothing about answers
            elsewhere.
    """
    # a text that the base predicts no better than chance shows nothing about its knowledge
    readable = {found.text: found for found in retained if found.base < vocab_size}
    judge = readable.get("kept") or (readable.get("other") if origin != "text" else None)
    if judge is None:
        return None
    key = "retention.far"
    if judge.kl <= _MOVED:
        key = "retention.alike" if judge.kl <= _ALIKE else "retention.moved"
    answers = bilingual(key, kl=judge.kl, text=judge.name)
    if origin == "filled" or perplexities["base"] >= vocab_size:
        return bilingual("retention.answers", answers=answers)
    gained = math.log(perplexities["base"] / perplexities["merged"])
    key = "retention.better" if gained > 0 else "retention.worse"
    if abs(gained) < _NO_GAIN:
        key = "retention.as_well"
    own = bilingual("retention.trained_text" if origin == "trained" else "retention.your_text")
    learned = bilingual(key, text=own, nats=abs(gained))
    return bilingual("retention.answers_and_knows", answers=answers, knows=learned)
