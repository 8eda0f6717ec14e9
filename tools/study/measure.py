"""One training of the study, by the product's own stage, and what it did to the base."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aegis.config.settings import ExportConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.kept import heldout_of
from aegis.data.packing import IGNORED, Windows
from aegis.data.training_set import load_training_set
from aegis.model.base import Base
from aegis.model.live_model import live_model
from aegis.runs.run import Run
from aegis.soul.angles import rotation_angles
from aegis.soul.file import load_soul
from aegis.stages.train import train
from aegis.verification.run_precheck import Later
from study import shipped
from study.cells import Cell

_TEMPERATURES = torch.linspace(0.8, 1.4, 25)
_BATCH = 8
"""Windows per forward pass."""
_BINS = 15


@dataclass(frozen=True)
class Texts:
    """Windows that a training is judged on.

    Attributes:
        new: of the domain that it learned, held out.
        kept: that the base wrote itself, never trained on.
        other: of neither.
    """

    new: Windows
    kept: Windows
    other: Windows


@dataclass(frozen=True)
class Judged:
    """A model on one text, in nats per token.

    Attributes:
        loss: mean cross-entropy.
        tempered, temperature: the lowest mean cross-entropy over one temperature, and that temperature.
        calibration_error: expected calibration error of the likeliest token, 15 bins.
        kl: KL(base ‖ model); None for the base itself.
    """

    loss: float
    tempered: float
    temperature: float
    calibration_error: float
    kl: float | None = None


def texts_of(run: Run, config: TrainConfig, tokenizer: Any, other: Path) -> Texts:
    """The texts that judge a training with this config; `other` is a file as --dataset takes it.

    The seed chooses the rows that are held out, so the texts of one seed are no judge of another. Kept text is drawn
    even where a training does not keep, so that all are judged on the same windows.
    """
    kept = heldout_of(run)
    assert kept is not None, "the training that texts come from keeps"
    prepared = load_training_set(config, tokenizer)
    elsewhere = config.model_copy(update={"dataset": str(other), "heldout_rows": 0})
    assert prepared.heldout is not None, "the domain has rows to hold out"
    return Texts(prepared.heldout, kept, load_training_set(elsewhere, tokenizer).train)


@torch.no_grad()
def judge(model: Any, windows: Windows, base: Any = None, limit: int = 48) -> Judged:
    """Measure a model on at most `limit` windows.

    Args:
        model, base: …ForCausalLM; `base` gives the reference of the divergence.
    """
    losses, tempered, hits, kls = [], [], [], []
    # nothing is read back before the end: other trainings share the GPU, and each answer would wait for their turns
    for ids, positions, rows, targets in _batches(windows, model.device, limit):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits.flatten(0, 1)[rows].float()
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        tempered.append(_tempered(logits, targets))
        confidence, likeliest = logits.softmax(-1).max(-1)
        hits.append(torch.stack([confidence, (likeliest == targets).float()]))
        if base is not None:
            reference = base(input_ids=ids, position_ids=positions, use_cache=False).logits.flatten(0, 1)[rows].float()
            kls.append(_divergence(reference, logits))
    loss = torch.cat(losses)
    means = torch.stack(tempered).sum(0) / len(loss)
    best = int(means.argmin())
    return Judged(
        loss.double().mean().item(),
        means[best].item(),
        _TEMPERATURES[best].item(),
        _calibration_error(torch.cat(hits, -1)),
        torch.cat(kls).double().mean().item() if kls else None,
    )


def _tempered(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy at each temperature, float64."""
    right = logits.gather(-1, targets[:, None])[:, 0]
    sums = [((logits / t).logsumexp(-1) - right / t).double().sum() for t in _TEMPERATURES.tolist()]
    return torch.stack(sums)


def judged_on(model: Any, texts: Texts, base_model: Any) -> dict[str, dict[str, Any]]:
    """Measure a model on all texts; the divergence from the base on its own text."""
    return {
        "new": vars(judge(model, texts.new)),
        "kept": vars(judge(model, texts.kept, base_model)),
        "other": vars(judge(model, texts.other)),
    }


def trained(
    cell: Cell, config: TrainConfig, base: Base, run: Run, texts: Texts, base_model: Any, device: torch.device
) -> dict[str, Any]:
    """Train with a cell's config, and measure the result, and its files, beside the base."""
    began = time.monotonic()
    report = train(config, run, overwrite=True, later=Later(export=ExportConfig(quant=(cell.finish,))))
    seconds = time.monotonic() - began
    with live_model(base, run.adapter, config.load_in, device) as model:
        found: dict[str, Any] = judged_on(model, texts, base_model)
        found["base_new"] = vars(judge(base_model, texts.new))
    if cell.shipped:
        found["shipped"] = shipped.judged(base, run.adapter, cell.shipped, texts, base_model)
    soul = load_soul(run.adapter / "soul.safetensors")
    angles = torch.rad2deg(rotation_angles(soul.rotation)).numpy()
    return found | {
        "gate": soul.gate,
        "head_q6_k": shipped.head_errors(base, soul),
        "angles_degrees": [round(float(np.quantile(angles, q)), 2) for q in (0.0, 0.5, 1.0)],
        "tokens_per_second": report.tokens_per_second,
        "trained_parameters": report.trainable_parameters,
        "seconds": round(seconds, 1),
    }


def _batches(windows: Windows, device: torch.device, limit: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    for start in range(0, min(limit, len(windows)), _BATCH):
        batch = windows.batch(list(range(start, min(start + _BATCH, limit, len(windows)))))
        labels = torch.as_tensor(batch.labels).flatten()
        rows = (labels != IGNORED).nonzero().flatten()  # a label is the token itself: the place before predicts it
        ids, positions = (torch.as_tensor(array).to(device) for array in (batch.input_ids, batch.position_ids))
        yield ids, positions, (rows - 1).to(device), labels[rows].to(device)


def _divergence(reference: Tensor, logits: Tensor) -> Tensor:
    base, other = reference.log_softmax(-1), logits.log_softmax(-1)
    return (base.exp() * (base - other)).sum(-1)


def _calibration_error(hits: Tensor) -> float:
    confidence, right = hits.cpu()
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1)
    error = 0.0
    for number in range(_BINS):
        chosen = bins == number
        if chosen.any():
            error += chosen.float().mean().item() * abs(confidence[chosen].mean().item() - right[chosen].mean().item())
    assert math.isfinite(error)
    return error
