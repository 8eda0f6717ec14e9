"""Tests that verify's numbers equal their definitions, for any chunk size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aegis.errors import IntegrityError
from aegis.runs.publish import discard_leftovers
from aegis.verification import divergence
from aegis.verification.divergence import Recording, best_temperature, compare, perplexity, record
from aegis.verification.retention import measured

SEQUENCES = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3]]
VOCABULARY = 16


def logits(seed: int, scale: float = 2.0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, scale, (len(sequence), VOCABULARY)).astype(np.float32) for sequence in SEQUENCES]


def recorded(tmp_path: Path, outputs: list[NDArray[np.float32]], name: str = "one") -> Recording:
    return record(tmp_path / f"{name}.npy", outputs, SEQUENCES)


@pytest.mark.parametrize("chunk", [1, 3 * VOCABULARY, 1 << 23])
def test_kl_and_agreement_equal_their_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """KL(p‖q) as torch computes it; swapped, it is another number; a model is nothing apart from itself."""
    monkeypatch.setattr(divergence, "_CHUNK", chunk)
    one, other = logits(1), logits(2)
    found = compare(recorded(tmp_path, one), recorded(tmp_path, other, "other"))
    p, q = (torch.log_softmax(torch.from_numpy(np.concatenate(x)).double(), -1) for x in (one, other))
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert found.mean_kl == pytest.approx(kl.mean().item())
    assert found.max_kl == pytest.approx(kl.max().item())
    assert found.p99_kl == pytest.approx(kl.quantile(0.99).item())
    assert found.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found.max_delta == pytest.approx(np.abs(np.concatenate(one) - np.concatenate(other)).max())
    swapped = compare(recorded(tmp_path, other, "other"), recorded(tmp_path, one))
    assert abs(swapped.mean_kl - found.mean_kl) > 1e-3
    same = compare(recorded(tmp_path, one), recorded(tmp_path, one, "same"))
    assert (same.mean_kl, same.max_kl, same.top1, same.max_delta) == (0, 0, 1, 0)


@pytest.mark.parametrize("chunk", [1, 1 << 23])
def test_perplexity_equals_its_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Of the tokens that follow inside a sequence: no sequence is asked to foresee the next one's start."""
    monkeypatch.setattr(divergence, "_CHUNK", chunk)
    model = recorded(tmp_path, logits(1))
    losses = [
        torch.nn.functional.cross_entropy(torch.from_numpy(rows[:-1]), torch.tensor(ids[1:]), reduction="none")
        for rows, ids in zip(logits(1), SEQUENCES, strict=True)
    ]
    assert model.scored == 7
    assert perplexity(model) == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-6)


def test_a_best_temperature_removes_a_loss_that_is_only_sharpness(tmp_path: Path) -> None:
    """Logits six times as sharp: the best temperature is six times the old, and then nothing is lost."""
    fair = logits(1, scale=1.0)
    for rows, ids in zip(fair, SEQUENCES, strict=True):
        rows[range(len(ids) - 1), ids[1:]] += 1.5  # it knows something of what follows
    base, sharp = recorded(tmp_path, fair), recorded(tmp_path, [6 * rows for rows in fair], "sharp")
    assert best_temperature(sharp) == pytest.approx(6 * best_temperature(base), rel=0.02)
    kept = measured("kept", base, sharp)
    assert kept.lost > 0.05
    assert kept.lost_tempered == pytest.approx(0, abs=1e-3)
    assert kept.kl_tempered < 1e-3 < 0.05 < kept.kl
    other = measured("other", base, recorded(tmp_path, logits(2), "other"))
    assert abs(other.lost_tempered) > 1e-3
    assert other.kl_tempered > 0.05
    assert kept.lost == pytest.approx(math.log(kept.result / kept.base))


def test_recordings_of_other_vocabularies_or_with_nan_are_refused(tmp_path: Path) -> None:
    broken = logits(1)
    broken[1][0, 0] = np.nan
    with pytest.raises(IntegrityError, match="not finite"):
        recorded(tmp_path, broken)
    short = [logits(1)[0][:-1], *logits(1)[1:]]
    with pytest.raises(IntegrityError) as caught:
        recorded(tmp_path, short)
    assert caught.value.key == "divergence.not_finite"
    narrow = record(tmp_path / "narrow.npy", [rows[:, :-1] for rows in logits(1)], SEQUENCES)
    with pytest.raises(IntegrityError, match="vocabularies of 16 and 15"):
        compare(recorded(tmp_path, logits(1)), narrow)


def test_the_directory_for_recordings_is_removed(tmp_path: Path) -> None:
    """It is where publishing sweeps, so the next publication removes a killed verification's files."""
    place = tmp_path / "verify"
    with divergence.scratch(place) as work:
        assert work.parent == tmp_path
        recorded(work, logits(1))
        assert [path.name for path in tmp_path.iterdir()] == [work.name]
    assert list(tmp_path.iterdir()) == []
    killed = work
    killed.mkdir()
    discard_leftovers(place)
    assert not killed.exists()
