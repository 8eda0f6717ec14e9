"""Facts as stages record them, for tests that write a manifest."""

from __future__ import annotations

from typing import Any

from aegis.runs.facts import DataFacts, ExportFacts, MergeFacts, Provenance, TrainFacts, TrainResult

_DATA = DataFacts(content_sha256="d" * 64, train_rows=8, heldout_rows=2, truncated=0, tokens=100, trained_tokens=50)
_RESULT = TrainResult(steps=3, heldout_loss=None, alpha=1.618, gate=0.83, trainable_parameters=10)


def train_facts(**changes: Any) -> dict[str, Any]:
    facts = TrainFacts(
        base_model="tiny",
        revision=None,
        device="cpu",
        compute_dtype="float32",
        processes=1,
        data=_DATA,
        housekeeping={},
        result=_RESULT,
    )
    return facts.model_copy(update=changes).recorded()


def merge_facts(**changes: Any) -> dict[str, Any]:
    facts = MergeFacts(
        base_model="tiny",
        revision=None,
        model_type="phi3",
        alpha=1.618,
        gate=0.83,
        soul_step=3,
        rotation="so8",
        determinant=1,
        counter_scale="",
        origin=Provenance(base="tiny"),
    )
    return facts.model_copy(update=changes).recorded()


def export_facts(**changes: Any) -> dict[str, Any]:
    facts = ExportFacts(name="tiny", context_tokens=4096, files={"Q4_K_M": "m-Q4_K_M.gguf"})
    return facts.model_copy(update=changes).recorded()
