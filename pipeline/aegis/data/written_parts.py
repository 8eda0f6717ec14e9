"""Finds which parts of a chat a template writes: it is rendered with a word of its own in the place of each part.

A part may be a word that the chat has elsewhere too, such as a city that is in the question and in a tool call. So its
text in the rendered chat does not show that the template writes this part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from aegis.data import thoughts
from aegis.data.records import Message
from aegis.data.rejects import RowError


class Written(NamedTuple):
    """Whether a template writes a message's text, thought and tool calls; True for a part that the message lacks."""

    text: bool = True
    thought: bool = True
    calls: bool = True


def written_parts(messages: Sequence[Message], render: Callable[[list[Message]], str]) -> list[Written]:
    """Return for each message which of its parts `render` writes.

    All parts count as written if `render` accepts no other values than those of the chat.
    """
    has_calls = any("tool_calls" in message for message in messages)
    for with_names in (True, False)[: 1 + has_calls]:  # a template may accept only names that `tools` has
        words = _Words()
        marked = [words.marked(message, with_names=with_names) for message in messages]
        try:
            text = render([message for message, _ in marked])
        except RowError:
            continue
        return [Written(*(all(word in text for word in part) for part in parts)) for _, parts in marked]
    return [Written() for _ in messages]


def leaves(value: object) -> Iterator[object]:
    """Yield the values in nested objects and lists, except null."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif value is not None:
        yield value


def is_in(leaf: object, text: str) -> bool:
    """Return whether a value is in the text: unchanged, as JSON, or as Python writes it, as some templates do."""
    if isinstance(leaf, str):
        return leaf in text or any(json.dumps(leaf, ensure_ascii=escaped)[1:-1] in text for escaped in (False, True))
    return json.dumps(leaf) in text or str(leaf) in text


class _Parts(NamedTuple):
    """The words in the place of a message's text, thought and tool calls."""

    text: list[str]
    thought: list[str]
    calls: list[str]


class _Words:
    """Words that no chat and no template has."""

    def __init__(self) -> None:
        self._numbers = count()

    def _word(self, words: list[str]) -> str:
        words.append(f"aegis{next(self._numbers)}part")
        return words[-1]

    def marked(self, message: Message, *, with_names: bool) -> tuple[Message, _Parts]:
        """Return the message with words in the place of its parts, and these words."""
        parts = _Parts([], [], [])
        marked: Message = {**message, "content": self._content(message, parts)}
        if message.get("reasoning_content", "").strip():
            marked["reasoning_content"] = self._word(parts.thought)
        if "tool_calls" in message:
            marked["tool_calls"] = [self._call(call, parts, with_names=with_names) for call in message["tool_calls"]]
        return marked, parts

    def _content(self, message: Message, parts: _Parts) -> str | None:
        content = message["content"]
        if not content or not content.strip():
            return content
        divided = thoughts.split(content) if message["role"] == "assistant" else None
        if divided is None:
            return self._word(parts.text)
        thought, answer = divided
        return thoughts.replaced(
            content,
            self._word(parts.thought) if thought.strip() else thought,
            self._word(parts.text) if answer.strip() else answer,
        )

    def _call(self, call: dict[str, object], parts: _Parts, *, with_names: bool) -> dict[str, object]:
        function: dict[str, object] = {**call["function"]}  # type: ignore[dict-item]
        if with_names:
            function["name"] = self._word(parts.calls)
        arguments = function["arguments"]
        if isinstance(arguments, str):  # JSON
            function["arguments"] = json.dumps(self._value(json.loads(arguments), parts))
        else:
            function["arguments"] = self._value(arguments, parts)
        return {**call, "function": function}

    def _value(self, value: object, parts: _Parts) -> object:
        if isinstance(value, Mapping):
            return {name: self._value(inner, parts) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._value(inner, parts) for inner in value]
        return value if value is None or value == "" else self._word(parts.calls)
