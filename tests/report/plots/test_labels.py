"""Tests of the pictures' labels: in the reader's language, and in English where no font has Japanese letters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from aegis.messages import LANGUAGES, VARIABLE, words
from aegis.report.plots import labels
from aegis.report.plots.divergence import draw_divergence
from aegis.report.plots.study import draw_study
from aegis.report.plots.training import draw_all
from tests.conftest import Recorder
from tests.report.plots.test_study import POINTS
from tests.report.plots.test_training import END, ROWS, START
from tests.screen_texts import verdict

JAPANESE = re.compile("[぀-ヿ一-鿿]")
EVERY_LETTER = "Last Resort High-Efficiency"
"""matplotlib brings this font: it has a sign for every letter."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    labels.japanese_font.cache_clear()
    yield
    labels.japanese_font.cache_clear()


def texts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> set[str]:
    """Draw every picture, and return the words on all of them."""
    found: set[str] = set()
    save = Figure.savefig

    def saved(figure: Figure, *arguments: Any, **named: Any) -> None:
        save(figure, *arguments, **named)
        found.update(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))

    monkeypatch.setattr(Figure, "savefig", saved)
    folder.mkdir()
    draw_all(ROWS, START, END, 0.8345, folder)
    draw_divergence(verdict().steps, folder / "divergence.png")
    draw_study(POINTS, 0.021, folder / "study.png")
    return {text for text in found if re.search(r"[^\W\d_]{2}", text) and "$" not in text}


@pytest.mark.parametrize("spoken", LANGUAGES)
def test_every_label_is_in_the_readers_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoken: str, reporter: Recorder
) -> None:
    monkeypatch.setattr(labels, "_JAPANESE", (EVERY_LETTER,))
    monkeypatch.setattr(fontManager, "get_font_names", lambda: [EVERY_LETTER])
    monkeypatch.setenv(VARIABLE, spoken)
    shown = texts(monkeypatch, tmp_path / "pictures")
    names = {"f16 to Q4_K_M", *(point.quant for point in POINTS), *(point.variant for point in POINTS)}
    written = {text for text in shown - names if " to " not in text or spoken == "en"}
    assert len(written) > 30
    assert [text for text in written if bool(JAPANESE.search(text)) != (spoken == "ja")] == []
    assert reporter.messages == []


def test_without_a_font_the_labels_are_english_and_the_reader_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    monkeypatch.setattr(labels, "_JAPANESE", ())
    monkeypatch.setenv(VARIABLE, "ja")
    shown = texts(monkeypatch, tmp_path / "pictures")
    assert not any(JAPANESE.search(text) for text in shown)
    assert reporter.messages == [words("picture", "ja")["no_font"]]
