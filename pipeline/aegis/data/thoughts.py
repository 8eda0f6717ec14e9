"""What a model thinks before it answers, where templates and data write it into the answer: <think>...</think>."""

from __future__ import annotations

import re
from typing import NamedTuple

from aegis.data.records import Message

_NAME = r"(?:seed:)?(?:think|thinking|thought|reasoning)"
_TAG = rf"[<\[]/?{_NAME}[>\]]"
_CLOSING = re.compile(rf"(?:</{_NAME}>|\[/{_NAME}\])", re.IGNORECASE)
_LEADING = re.compile(rf"\s*(?:<{_NAME}>|\[{_NAME}\])\n?", re.IGNORECASE)
_OPENING = re.compile(rf"{_TAG}(?:\s*{_TAG})*\s*\Z", re.IGNORECASE)


class Parts(NamedTuple):
    """An answer's text in two, the tags of the thought left out."""

    thought: str
    answer: str


def is_thought_tag(text: str) -> bool:
    """Whether a text is the tag that opens or closes a thought."""
    return re.fullmatch(_TAG, text, re.IGNORECASE) is not None


def split(content: str) -> Parts | None:
    """A thought and the answer behind it; None if there is no thought in the text."""
    closings = list(_CLOSING.finditer(content))
    if not closings:
        return None
    return Parts(_LEADING.sub("", content[: closings[-1].start()], count=1), content[closings[-1].end() :])


def without_opening(prompt: str) -> str:
    """A prompt without the tags of a thought at its end, which some templates open or skip for the model."""
    return _OPENING.sub("", prompt)


def continued(prompt: str, content: str) -> str:
    """`content` as the model writes it behind the prompt, which may have opened the thought already."""
    return _LEADING.sub("", content, count=1) if _opens(prompt) else content


def as_content(prompt: str, thought: str, answer: str) -> str | None:
    """A thought that stands apart from its answer, as the model writes both; None if the prompt opens no thought."""
    match = re.search(rf"([<\[])({_NAME})([>\]])\s*\Z", prompt, re.IGNORECASE)
    if match is None:
        return None
    left, name, right = match.groups()
    return f"{thought.strip()}\n{left}/{name}{right}\n\n{answer.lstrip()}"


def stripped(message: Message) -> Message:
    """A message without its thought, as templates show earlier answers."""
    content = message["content"]
    parts = split(content) if content and message["role"] == "assistant" else None
    short: Message = {**message, "content": parts.answer.lstrip("\n") if parts else content}
    short.pop("reasoning_content", None)
    return short


def is_closed(prompt: str) -> bool:
    """Whether the prompt ends with a thought that is over already."""
    return re.search(rf"{_CLOSING.pattern}\s*\Z", prompt, re.IGNORECASE) is not None


def _opens(prompt: str) -> bool:
    return re.search(rf"(?:<{_NAME}>|\[{_NAME}\])\s*\Z", prompt, re.IGNORECASE) is not None
