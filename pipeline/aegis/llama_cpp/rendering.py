"""Renders untrusted chat templates in a confined process; `data.template` renders training rows in another.

A template is a program. It may loop forever, double a text until no memory is left, or compute a huge power in one
instruction, which holds Python's interpreter lock so that neither a deadline nor Ctrl-C can stop it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from aegis.errors import DataError
from aegis.llama_cpp.confined import Confined, Ended, Failed, Message, Overdue, TooLarge

RENDER_SECONDS = 60.0
"""Time limit of one batch of chats; an ordinary template takes microseconds per chat."""
RENDER_BYTES = 256 << 20
"""Memory for one batch, in addition to COPIES copies of its text."""
COPIES = 16

Flavour = Literal["transformers", "llama.cpp"]
_WORKER = "aegis.llama_cpp._rendering_worker"
_confined: dict[Flavour, Confined] = {
    "transformers": Confined(_WORKER, Message({"flavour": "transformers"})),
    "llama.cpp": Confined(_WORKER, Message({"flavour": "llama.cpp"})),
}


class Raised(NamedTuple):
    """An exception that a template raised: its class and its message."""

    kind: str
    text: str

    def error(self) -> DataError:
        """Return the exception as an error of the data."""
        return DataError("rendering.raises", name=self.kind, error=self.text)


def render(flavour: Flavour, source: str, calls: Sequence[Mapping[str, object]]) -> list[str | Raised]:
    """Render a template once per item of `calls`, which are its variables.

    Args:
        flavour: the library whose environment, functions and filters the template gets.
        source: the template.

    Raises:
        DataError: the template cannot be compiled, does not finish, or takes too much memory.
    """
    fields: dict[str, object] = {"flavour": flavour, "source": source, "calls": list(calls)}
    memory_bytes = RENDER_BYTES + COPIES * (len(source) + _size(fields["calls"]))
    try:
        answer = _confined[flavour].ask(fields, seconds=RENDER_SECONDS, memory_bytes=memory_bytes)
    except Failed as error:
        raise DataError("rendering.unusable", name=error.kind, error=str(error)) from error
    except (Overdue, TooLarge, Ended) as error:
        raise out_of_bounds(error, RENDER_SECONDS) from error
    return [Raised(*found) if isinstance(found, list) else found for found in answer.fields["rendered"]]


def out_of_bounds(error: Overdue | TooLarge | Ended, seconds: float) -> DataError:
    """Return the error of a template or tokenizer for which a confined process was ended."""
    if isinstance(error, Overdue):
        return DataError("rendering.hangs", seconds=seconds)
    if isinstance(error, TooLarge):
        return DataError("rendering.too_large")
    return DataError("rendering.ended", how=str(error))


def chat_texts(
    tokenizer: Any, conversations: Sequence[Sequence[Mapping[str, object]]], *, prompt: bool, source: str | None = None
) -> list[str | Raised]:
    """Render conversations with the template of a transformers tokenizer, as `apply_chat_template` does.

    Args:
        prompt: end with the text that opens the assistant's turn.
        source: a template to use instead of the tokenizer's.

    Raises:
        DataError: as `render`.
    """
    shared = {"tools": None, "documents": None, "add_generation_prompt": prompt, **tokenizer.special_tokens_map}
    calls = [{**shared, "messages": [dict(message) for message in messages]} for messages in conversations]
    try:
        source = source or tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them the default
        return [Raised("ValueError", str(error)) for _ in calls]
    return render("transformers", source, calls)


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, object]], *, prompt: bool) -> str:
    """Render one conversation; raises DataError as `render`, and also if the template raises."""
    (found,) = chat_texts(tokenizer, [messages], prompt=prompt)
    if isinstance(found, Raised):
        raise found.error()
    return found


def _size(value: object) -> int:
    """Return an upper bound on the bytes of the texts in a value: four per character."""
    if isinstance(value, str):
        return 4 * len(value)
    if isinstance(value, Mapping):
        return sum(_size(key) + _size(inner) for key, inner in value.items())
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8
