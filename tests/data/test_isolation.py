"""Tests that a document has the same logits in a packed window as alone.

AEGIS does not mask attention: transformers builds a block-diagonal mask from positions that start again, if it gets no
attention mask and no cache. These tests check that it still does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aegis.data.example import Example
from aegis.data.packing import Batch, pack
from tests.stored_pieces import stored

MakeModel = Callable[[str], Any]
A, OTHER_A, B = [5, 6, 7, 8, 9], [15, 16, 17, 18, 19], [21, 22, 23]
WIDTH = 12
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["phi3", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    config = AutoConfig.for_model(
        request.param,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)  # wide, so that attention tells keys apart
    return model


def window(*documents: list[int]) -> Batch:
    pieces = [Example(np.array(ids, np.int32), np.ones(len(ids), np.bool_), False) for ids in documents]
    windows = pack(stored(pieces), max_length=WIDTH, packing=True, seed=0, pad_token_id=0)
    assert len(windows) == 1
    return windows.batch([0])


def logits(model: Any, *batches: Batch, **extra: Any) -> torch.Tensor:
    ids, positions = (
        torch.from_numpy(np.concatenate([getattr(batch, name) for batch in batches]))
        for name in ("input_ids", "position_ids")
    )
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, **extra).logits
    return found


def of(document: list[int], batch: Batch, found: torch.Tensor) -> torch.Tensor:
    """Return the logits of one document in one window."""
    start = batch.input_ids[0].tolist().index(document[0])
    assert batch.input_ids[0, start : start + len(document)].tolist() == document
    return found[start : start + len(document)]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_document_does_not_attend_to_its_neighbour(model: Any, rows: int) -> None:
    one, other, alone = window(A, B), window(OTHER_A, B), window(B)
    beside = [window(B, A)] * (rows - 1)
    seen = [of(B, batch, logits(model, batch, *beside)[0]) for batch in (one, other, alone)]
    by_itself = model(input_ids=torch.tensor([B]), use_cache=False).logits[0].detach()
    for found in seen:
        assert (found - by_itself).abs().max() < TOLERANCE
    if rows == 2:
        assert (of(B, beside[0], logits(model, one, *beside)[1]) - by_itself).abs().max() < TOLERANCE


def test_a_window_with_padding_has_finite_logits(model: Any) -> None:
    """No row of the mask is empty: a softmax over nothing is NaN, and its gradient poisons every weight."""
    assert torch.isfinite(logits(model, window(A, B))).all()


def test_an_attention_mask_would_let_documents_leak(model: Any) -> None:
    """The control: with a mask of ones, transformers no longer looks at the positions."""
    one, other = window(A, B), window(OTHER_A, B)
    mask = torch.ones(1, WIDTH, dtype=torch.long)
    first, second = (of(B, batch, logits(model, batch, attention_mask=mask)[0]) for batch in (one, other))
    assert (first - second).abs().max() > 1000 * TOLERANCE
