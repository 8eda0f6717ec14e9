"""Runs a verification's transformers models over the same token ids, one model in memory at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from aegis.background import stop_if_asked
from aegis.merging.base_weights import RoundTrip
from aegis.merging.merged_weights import DTYPES
from aegis.messages import phrase
from aegis.model.live_model import made_live
from aegis.model.load import load_base
from aegis.runs.facts import AdapterFacts
from aegis.verification import divergence
from aegis.verification.comparison import Comparison
from aegis.verification.divergence import Recording
from aegis.verification.logits import torch_logits
from aegis.verification.other_merge import choices, merge_the_other_way
from aegis.verification.retention import Witnesses
from aegis.verification.structure import Structure
from aegis.verification.trained_model import trained_model
from aegis.verification.verdict import BaseComparison


@dataclass
class TransformersPasses:
    """The models trained, base, wide and merged of a run, and with `round_trip` the merge with the other base weights.

    Attributes:
        round_trip: the NF4 round trip, the difference between the two choices of base weights; None if they are not
            compared.
    """

    structure: Structure
    comparison: Comparison
    witnesses: Witnesses
    device: torch.device
    round_trip: RoundTrip | None
    _other_way: Recording | None = None
    _stop: threading.Event | None = None

    @property
    def finished_as(self) -> str | None:
        """The type of the file whose weights the training ended with; None without a finish."""
        finish = AdapterFacts.of(self.structure.manifests["train"]).finish
        return None if finish is None else finish.quant

    @property
    def _merged_as(self) -> str:
        return self.structure.merge_config.dtype

    def run(self, stop: threading.Event | None = None) -> None:
        """Record every model's logits.

        Args:
            stop: set to end this between two models.

        Raises:
            InterruptedError: it was set.
            IntegrityError: a model cannot be loaded, or returned NaN or Inf.
        """
        structure, device = self.structure, self.device
        base, run = structure.base, structure.run
        self._stop = stop
        # float16 has eight times the resolution of bfloat16, and the merged weights are float16
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        with trained_model(base, run.adapter, structure.manifests["train"], self._merged_as, device) as model:
            self._record("trained", model, phrase("verify.as_trained"))
            if self.finished_as is not None:  # it has the file's weights, which the merged model has not
                self.witnesses.record("result", model)
        del model
        plain = load_base(base.folder, "16bit", device, dtype)
        self.witnesses.record("base", plain)
        self._record("base", plain, phrase("verify.plain_base"))
        if structure.base_weights == "dequantized":
            del plain
            plain = load_base(base.folder, "dequantized", device, dtype)
        with made_live(plain, base, run.adapter) as model:
            self._record("wide", model, phrase("verify.wide"))
        del plain, model
        merged = load_base(run.merged, "16bit", device, dtype)
        self._record("merged", merged, phrase("verify.merged"))
        if self.finished_as is None:
            self.witnesses.record("result", merged)
        if self.round_trip is not None:
            merge_the_other_way(merged, self.round_trip, structure)
            outputs = torch_logits(merged, self.comparison.sample.compared, phrase("verify.other_way"))
            path = self.comparison.work / "other-way.npy"
            self._other_way = divergence.record(path, outputs, self.comparison.sample.compared, self.device)

    def compare(self, max_kl_nf4: float | None) -> tuple[BaseComparison, ...]:
        """Compare trained, wide and merged; return both choices of base weights, if they are measured."""
        models = self.comparison.models
        self.comparison.step("trained", "wide", "train", max_kl_nf4)
        # on a GPU the computation itself is in float16
        rounded = max(DTYPES[self._merged_as], torch.float16, key=lambda kind: torch.finfo(kind).eps)
        self.comparison.rounding("wide", "merged", "merge", rounded)
        if self._other_way is None:
            return ()
        return choices(self.structure.base_weights, models["trained"], models["merged"], self._other_way)

    def _record(self, name: str, model: Any, title: str) -> None:
        stop_if_asked(self._stop)
        self.comparison.record(name, torch_logits(model, self.comparison.sample.compared, title))
