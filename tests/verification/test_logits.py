"""Tests of a transformers model's logits: sequences that run together get what each gets by itself."""

from __future__ import annotations

import pytest
import torch

from aegis.model.load import load_base
from aegis.verification import logits
from aegis.verification.logits import _passes, torch_logits
from tests.conftest import MakeRandom

SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [30, 31], [32, 33, 34, 35]]


@pytest.mark.parametrize("name", ["phi3", "llama", "gemma3_text"])
def test_sequences_that_run_together_do_not_see_each_other(
    make_random: MakeRandom, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what fills them up. Control: what stands before a sequence changes its logits."""
    model = load_base(make_random(name, **({"head_dim": 64} if "gemma" in name else {})), "16bit", torch.device("cpu"))
    model = model.float().eval()
    alone = list(torch_logits(model, SEQUENCES, "alone"))
    monkeypatch.setattr(logits, "_pass_tokens", lambda *_: 32)
    together = list(torch_logits(model, SEQUENCES, "together"))
    assert [found.shape for found in together] == [(len(ids), alone[0].shape[1]) for ids in SEQUENCES]
    for found, wanted in zip(together, alone, strict=True):
        assert abs(found - wanted).max() < 1e-4
    (behind,) = torch_logits(model, [[*SEQUENCES[0], *SEQUENCES[1]]], "behind")
    assert abs(behind[8:] - alone[1]).max() > 1e-2


def test_passes_keep_the_order_and_the_limit() -> None:
    """The longest sequence of a pass counts for all in it; one that is longer than the limit has a pass of its own."""
    assert list(_passes(SEQUENCES, 0)) == [[sequence] for sequence in SEQUENCES]
    assert list(_passes(SEQUENCES, 16)) == [SEQUENCES[:2], SEQUENCES[2:]]
    assert list(_passes(SEQUENCES, 7)) == [SEQUENCES[:1], SEQUENCES[1:3], SEQUENCES[3:]]
    assert list(_passes([], 16)) == []
