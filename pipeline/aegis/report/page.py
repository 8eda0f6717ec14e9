"""Renders a report as one HTML file that loads nothing from outside and runs no script.

Names of models, rows of data, answers and errors are untrusted text: the template escapes every value, and the page's
security policy allows only its own pictures and styles.
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
    """Rows of text; `numeric` columns are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        key: the label of its heading.
        facts: label → value.
        pictures: PNG files; their names are labels too.
        missing: why the section is empty; "" if it is not.
    """

    key: str
    facts: Mapping[str, str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Path] = ()
    missing: str = ""


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        state: proven, not_proven or not_verified.
        why: the reason for that state.
        headline: label → value, the few numbers at the top.
        questions, voices: the questions, and each model's answers.
        heldout: whether the questions come from held-out chats.
        no_samples: why there are no questions; "" if there are.
        settings: stage → its settings.
        commands: the commands that run the result.
        versions: package → version.
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
    """Return the page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = data_uri
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(page=page, language=language, label=words("page", language))


def data_uri(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
