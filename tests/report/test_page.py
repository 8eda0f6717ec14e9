"""Tests of a report's page: a browser loads only the page, shows all of it, and runs no script in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from aegis.messages import Language, words
from aegis.report.answers import Answer, ModelAnswers
from aegis.report.page import Page, Section, Table, render
from tests.browser import Browser

HOSTILE = (
    '</p><script>document.title = "owned"; console.error("owned")</script>'
    '<img src="http://127.0.0.1:9/spy.png" onerror="document.title=1"><style>@import "http://127.0.0.1:9/s.css"</style>'
    '" onload="x" \' {{ 7 * 7 }} {% raw %} &lt;b&gt; \u202e<!-- ]]>'
)
PICTURES = ("training.png", "phase.png", "rotation.png", "spectrum.png", "divergence.png")


def page(folder: Path, text: str = HOSTILE, **changes: Any) -> Page:
    """Return a page in which every value is the same text."""
    for name in PICTURES:
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        figure.savefig(folder / name)
    sections = [
        Section("training", {"base": text, "steps": text}, pictures=[folder / name for name in PICTURES]),
        Section("verify", {}, [Table(("models", "mean_kl", "sha256"), [(text, text, "f" * 64)], frozenset({1}))]),
        Section("merge", {}, missing=text),
    ]
    values: dict[str, Any] = {
        "title": text,
        "state": "not_proven",
        "why": text,
        "headline": {"base": text, "steps": "500", "heldout_loss": "1.2345", "gate": "0.8345", "size": "2.40 GB"},
        "questions": [text, text],
        "voices": [
            ModelAnswers("base", "", (Answer(text), Answer(text, cut=True))),
            ModelAnswers("trained", "", (), missing=text),
            ModelAnswers("gguf", text, (Answer(text),)),
        ],
        "heldout": True,
        "no_samples": "",
        "sections": sections,
        "settings": {"training": {text: text}},
        "commands": [text, text],
        "versions": {text: text},
    }
    return Page(**(values | changes))


LOOKS: Mapping[str, str] = {
    "title": "document.title",
    "scripts": "document.scripts.length",
    "pictures": "[...document.images].map(i => i.complete ? i.naturalWidth : 0)",
    "described": "[...document.images].every(i => i.alt.length > 0)",
    "tables": "document.querySelectorAll('table tbody tr').length",
    "overflow": "document.documentElement.scrollWidth - document.documentElement.clientWidth",
    "text": "document.body.innerText",
    "handlers": "[...document.querySelectorAll('*')].filter("
    "e => e.getAttributeNames().some(n => n.startsWith('on'))).length",
}


@pytest.mark.parametrize("width", [1000, 420])
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_a_browser_shows_the_complete_page_and_requests_nothing(
    browser: Browser, tmp_path: Path, lang: Language, width: int
) -> None:
    """Every value is a stranger's: none of it becomes markup. Nothing is wider than the window, a phone's included."""
    file = tmp_path / "report.html"
    file.write_text(render(page(tmp_path), lang), encoding="utf-8")
    seen = browser.open(file.as_uri(), width, **LOOKS)
    assert [url for url in seen.requests if not url.startswith("data:")] == [file.as_uri()]
    assert seen.complaints == []
    assert seen.found["title"].startswith(HOSTILE[:20])
    assert (seen.found["scripts"], seen.found["handlers"]) == (0, 0)
    assert len(seen.found["pictures"]) == len(PICTURES)
    assert all(pixels > 0 for pixels in seen.found["pictures"])
    assert seen.found["described"]
    assert seen.found["tables"] == 1
    assert seen.found["overflow"] <= 0
    assert "{{ 7 * 7 }}" in seen.found["text"]
    assert words("page", lang)["run_it"] in seen.found["text"]


def test_the_browser_notices_requests_and_scripts(browser: Browser, tmp_path: Path) -> None:
    """The control: the same text as markup asks for two things, runs a script and complains."""
    file = tmp_path / "open.html"
    file.write_text(f"<html><body><p>{HOSTILE}</p></body></html>", encoding="utf-8")
    seen = browser.open(file.as_uri(), **LOOKS)
    assert {url.rpartition("/")[2] for url in seen.requests} >= {"open.html", "spy.png", "s.css"}
    assert any("owned" in complaint for complaint in seen.complaints)
    assert seen.found["scripts"] == 1
    assert seen.found["pictures"] == [0]


def test_the_page_of_an_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    """The page can still be rendered, and names the missing parts."""
    empty = page(tmp_path, "x", questions=[], voices=[], no_samples="no chats", commands=[], versions={}, settings={})
    text = render(empty, "en")
    assert "no chats" in text
    assert "Not available: gguf/" in text
