"""Handles a model's thoughts in an answer's text, as templates and data write them: <think>...</think>."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from aegis.data.records import Message

_NAME = r"(?:seed:)?(?:think|thinking|thought|reasoning)"
_TAG = rf"[<\[]/?{_NAME}[>\]]"
_CLOSING = re.compile(rf"(?:</{_NAME}>|\[/{_NAME}\])", re.IGNORECASE)
_LEADING = re.compile(rf"\s*(?:<{_NAME}>|\[{_NAME}\])\n?", re.IGNORECASE)
_NAMES_A_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)


class Parts(NamedTuple):
    """An answer's text in two parts, without the tags of the thought."""

    thought: str
    answer: str


def is_thought_tag(text: str) -> bool:
    """Whether a text is a tag that opens or closes a thought."""
    return re.fullmatch(_TAG, text, re.IGNORECASE) is not None


def split(content: str) -> Parts | None:
    """Divide a text into a thought and the answer after it; None if it has no thought."""
    closings = list(_CLOSING.finditer(content))
    if not closings:
        return None
    return Parts(_LEADING.sub("", content[: closings[-1].start()], count=1), content[closings[-1].end() :])


def replaced(content: str, thought: str, answer: str) -> str:
    """Return a text that has a thought with another thought and another answer, in the same tags."""
    *_, closing = _CLOSING.finditer(content)
    opening = _LEADING.search(content, 0, closing.start())
    return (opening.group() if opening else "") + thought + closing.group() + answer


def before_opening(prompt: str, text: str, shared: int, answer: int | None) -> int | None:
    """Return where a prompt that opens a thought, or writes an empty one, parts from a chat without that thought.

    Args:
        shared: the length of the messages before, with which both begin; the head of the turn must be alike too.
        answer: where the answer begins in `text`, with tags alone between the head and it; None if it has no text.

    Returns:
        None if they part elsewhere, or what the prompt has more does not name a thought.
    """
    before = text[:answer]
    pairs = enumerate(zip(prompt, before, strict=False))
    common = next((place for place, (one, other) in pairs if one != other), min(len(prompt), len(before)))
    unclosed = re.search(r"[<\[][^<>\[\]]*\Z", prompt[:common])  # the two part within a tag
    common = unclosed.start() if unclosed else common
    alike = answer is None or re.fullmatch(r"(?:\s|<[^<>]*>|\[[^\[\]]*\])*", text[common:answer])
    return common if common > shared and alike and _NAMES_A_THOUGHT.search(prompt, common) else None


def continued(prompt: str, content: str) -> str:
    """Return `content` as the model writes it after the prompt, which may have opened the thought already."""
    return _LEADING.sub("", content, count=1) if _opens(prompt) else content


def as_content(prompt: str, thought: str, answer: str) -> str | None:
    """Join a thought and its answer as the model writes both; None if the prompt does not open a thought."""
    match = re.search(rf"([<\[])({_NAME})([>\]])\s*\Z", prompt, re.IGNORECASE)
    if match is None:
        return None
    left, name, right = match.groups()
    return f"{thought.strip()}\n{left}/{name}{right}\n\n{answer.lstrip()}"


def written(message: Message) -> Iterator[str]:
    """Yield the forms in which a template may write a message's text: unchanged, stripped, without its thought."""
    content = message["content"] or ""
    yield content
    yield content.strip()
    if parts := split(content):
        yield parts.answer.strip()


def stripped(message: Message) -> Message:
    """Remove the thought from a message, as templates do for earlier answers."""
    content = message["content"]
    parts = split(content) if content and message["role"] == "assistant" else None
    short: Message = {**message, "content": parts.answer.lstrip("\n") if parts else content}
    short.pop("reasoning_content", None)
    return short


def is_closed(prompt: str) -> bool:
    """Whether the prompt ends with a closed thought."""
    return re.search(rf"{_CLOSING.pattern}\s*\Z", prompt, re.IGNORECASE) is not None


def _opens(prompt: str) -> bool:
    return re.search(rf"(?:<{_NAME}>|\[{_NAME}\])\s*\Z", prompt, re.IGNORECASE) is not None
