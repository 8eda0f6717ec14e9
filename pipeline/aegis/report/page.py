"""A report as one HTML file: nothing in it asks for anything outside it, and nothing in it is run.

Names of models, rows of data, answers and errors are strangers' text: the template escapes every value, and the page's
own security policy allows pictures that are in it and styles that are in it, and nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegis.messages import Language, words
from aegis.report.answers import ModelAnswers

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True)
class Table:
    """Rows of text; `numeric` columns stand to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A heading and what is under it.

    Attributes:
        key: its label.
        facts: label → value.
        pictures: PNG files, whose names are labels too.
        missing: why there is nothing; "" if there is.
    """

    key: str
    facts: Mapping[str, str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Path] = ()
    missing: str = ""


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes:
        state: proven, not_proven or not_verified.
        why: what is behind that state.
        headline: label → value, the few numbers that come first.
        questions, voices: what was asked, and what each model answered.
        heldout: whether the questions are of held-out chats.
        no_samples: why nothing was asked; "" if it was.
        settings: stage → its settings.
        commands: how the result is run.
        versions: of what it was made with.
    """

    title: str
    state: str
    why: str
    headline: Mapping[str, str]
    questions: Sequence[str]
    voices: Sequence[ModelAnswers]
    heldout: bool
    no_samples: str
    sections: Sequence[Section]
    settings: Mapping[str, Mapping[str, str]]
    commands: Sequence[str]
    versions: Mapping[str, str]


def render(page: Page, language: Language) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = data_uri
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(page=page, language=language, label=words("page", language))


def data_uri(path: Path) -> str:
    """A PNG file as a URI that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
