"""Rows as they are read, and the two kinds of record that they are converted to: a chat and a plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NotRequired, Required, TypedDict


class Row(NamedTuple):
    """A row as it was read: `where` is its place for messages (file:line), `value` what the file has there."""

    where: str
    value: object


def repeated(names: Iterable[str]) -> str | None:
    """Return the first of these names that is there twice; None if there is none."""
    known = set[str]()
    for name in names:
        if name in known:
            return name
        known.add(name)
    return None


class Message(TypedDict, total=False):
    """A message; `role` is system, user, assistant or tool, and `content` is None if an assistant only calls tools."""

    role: Required[str]
    content: Required[str | None]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, object]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Chat:
    """An optional system message, then turns; the last is the assistant's.

    Attributes:
        messages: in the form of chat templates.
        where: the row's place, for messages to the user.
        pair: whether the row had prompt and completion; without a chat template, the two are simply joined.
        context: numbers, from 0, of assistant messages that are not trained.
        tools: definitions of functions, for the template's variable `tools`.
        variables: other variables of the template, such as enable_thinking.
    """

    messages: list[Message]
    where: str
    pair: bool = False
    context: frozenset[int] = frozenset()
    tools: list[dict[str, object]] | None = None
    variables: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plain:
    """A document without roles; every token is trained."""

    text: str
    where: str


Record = Chat | Plain
