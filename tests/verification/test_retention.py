"""Tests of the sentence about what was kept of a base: worded by the numbers, without meaningless ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.data.kept import fill
from aegis.verification.findings import BaseRetention, TextName
from aegis.verification.heldout_text import Origin, Sample
from aegis.verification.retention import Witnesses, sentence

PERPLEXITIES = {"base": 20.0, "merged": 12.0}


def on(text: TextName, kl: float, **changed: Any) -> BaseRetention:
    return BaseRetention(text, 100, kl, kl, 10.0, 10.2, 10.0, 10.1, 1.0, 1.0, **changed)


@pytest.mark.parametrize(
    ("kl", "answers"), [(0.02, "alike"), (0.05, "alike"), (0.06, "moved"), (0.3, "moved"), (0.31, "far"), (4.8, "far")]
)
def test_the_sentence_says_how_far_the_result_is_from_its_base(kl: float, answers: str) -> None:
    result_sentence = sentence([on("kept", kl), on("other", 9.9)], PERPLEXITIES, "heldout", 32_000)
    assert result_sentence is not None
    assert result_sentence.values["answers"].key == f"retention.{answers}"


@pytest.mark.parametrize(
    ("result", "origin", "knows", "whose"),
    [
        (12.0, "heldout", "better", "your_text"),
        (12.0, "text", "better", "your_text"),
        (12.0, "trained", "better", "trained_text"),
        (20.05, "heldout", "as_well", "your_text"),
        (25.0, "heldout", "worse", "your_text"),
    ],
)
def test_the_sentence_says_what_was_learned_and_of_which_text(
    result: float, origin: Origin, knows: str, whose: str
) -> None:
    result_sentence = sentence([on("kept", 0.02)], {"base": 20.0, "merged": result}, origin, 32_000)
    assert result_sentence is not None
    assert result_sentence.values["knows"].key == f"retention.{knows}"
    assert result_sentence.values["knows"].values["text"].key == f"retention.{whose}"


def test_the_parts_of_the_sentence_join_into_one() -> None:
    result_sentence = sentence([on("kept", 0.0212)], PERPLEXITIES, "heldout", 32_000)
    assert result_sentence is not None
    assert result_sentence.english == (
        "the result answers as the base does, 0.021 nats per token apart on kept text, "
        "and knows your text 0.51 nats better"
    )
    assert "0.021 nat" in result_sentence.in_language("ja")
    assert "0.51 nat" in result_sentence.in_language("ja")


def test_without_kept_text_other_text_decides_unless_it_is_the_users() -> None:
    result_sentence = sentence([on("other", 0.4)], PERPLEXITIES, "heldout", 32_000)
    assert result_sentence is not None
    assert result_sentence.values["answers"].key == "retention.far"
    assert sentence([on("other", 0.4)], PERPLEXITIES, "text", 32_000) is None


def test_meaningless_figures_are_left_out() -> None:
    """A text that the base predicts no better than chance, and rows so few that other text filled them up."""
    assert sentence([on("kept", 0.02)], PERPLEXITIES, "heldout", 10) is None
    filled = sentence([on("kept", 0.02)], PERPLEXITIES, "filled", 32_000)
    guessed = sentence([on("kept", 0.02)], {"base": 20.0, "merged": 12.0}, "heldout", 15)
    assert filled is not None
    assert filled == guessed
    assert filled.key == "retention.answers"


def test_a_bound_holds_up_to_its_own_value() -> None:
    assert on("kept", 0.1, max_kl=0.1).ok
    assert not on("kept", 0.1, max_kl=0.09).ok
    assert on("kept", 0.1).as_json()["ok"]


def test_kept_windows_are_read_up_to_the_configured_tokens(tmp_path: Path) -> None:
    """Each piece separately and cut to the limit; without kept windows there is only the other text."""
    windows = fill([np.arange(20, dtype=np.int32), np.arange(40, 60, dtype=np.int32)], 2, 20, 0)
    sample = Sample([[1, 2]], [[3, 4]], [], "heldout")
    found = Witnesses.of(tmp_path, sample, windows, 18, 12).texts
    assert found == {"kept": [list(range(12)), list(range(40, 46))], "other": [[3, 4]]}
    assert Witnesses.of(tmp_path, sample, None, 18, 12).texts == {"other": [[3, 4]]}
