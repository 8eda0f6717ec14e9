"""What every row becomes: a chat, or a plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NotRequired, Required, TypedDict


class Message(TypedDict, total=False):
    """`role` is system, user, assistant or tool. `content` is None where an assistant only calls tools."""

    role: Required[str]
    content: Required[str | None]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, object]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Chat:
    """An optional system message, then turns, the assistant's the last.

    Attributes:
        messages: in the form that chat templates take.
        where: its place, for people.
        pair: written as prompt and completion, so it may be joined as it stands if there is no chat template.
        context: numbers, from 0, of assistant messages that are shown and not trained on.
        tools: definitions of functions, for the template's variable of that name.
        variables: more of the template's own variables, such as enable_thinking.
    """

    messages: list[Message]
    where: str
    pair: bool = False
    context: frozenset[int] = frozenset()
    tools: list[dict[str, object]] | None = None
    variables: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plain:
    """A document with no roles: every token of it is trained on."""

    text: str
    where: str


Record = Chat | Plain
