"""The shapes a row may have, brought to two records: a chat, or a plain text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypedDict

from aegis.data.rejects import Rejects, RowError
from aegis.data.sources import Source
from aegis.messages import phrase


class Message(TypedDict):
    """`role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """An optional system message, then user and assistant in turns, the assistant last.

    `pair`: written as prompt and completion, so it may be joined as it stands if there is no chat template.
    """

    messages: list[Message]
    where: str
    pair: bool = False


@dataclass(frozen=True, slots=True)
class Plain:
    """A document with no roles: every token of it is learnt."""

    text: str
    where: str


Record = Chat | Plain
_Object = dict[str, object]

_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
_KINDS = {
    dict: "formats.kind_object",
    list: "formats.kind_list",
    bool: "formats.kind_boolean",
    int: "formats.kind_number",
    float: "formats.kind_number",
    str: "formats.kind_string",
}


def records(source: Source, rejects: Rejects) -> Iterator[Record]:
    """Every usable row of `source`; the others go to `rejects`.

    The first row that has a known shape sets the shape for the whole source: a row of another shape is more
    likely a mistake (two files joined) than an intention.
    """
    shape: str | None = None
    for where, value in source.rows(rejects):
        try:
            if not isinstance(value, dict):
                raise RowError(phrase("formats.row_not_an_object", value=_kind(value)))
            shape = shape or _shape_of(value)
            if shape is None:
                raise RowError(phrase("formats.unknown_shape", value=_names(value), known=_known()))
            keys, convert = _SHAPES[shape]
            missing = [key for key in keys if key not in value]
            other = _shape_of(value) if missing else None
            if other:
                raise RowError(phrase("formats.other_shape", shape=shape, other=other))
            if missing:
                raise RowError(phrase("formats.missing_keys", missing=_names(missing)))
            record = convert(value, where)
        except RowError as error:
            rejects.add(where, str(error))
        else:
            yield record


def _messages(row: _Object, where: str) -> Chat:
    return Chat(_conversation(row["messages"], "role", "content", lambda role: role), where)


def _sharegpt(row: _Object, where: str) -> Chat:
    def role_of(name: str) -> str:
        return _SHAREGPT_ROLES.get(name, name)

    return Chat(_conversation(row["conversations"], "from", "value", role_of), where)


def _prompt_completion(row: _Object, where: str) -> Chat:
    return Chat(_exchange(_text(row, "prompt"), _text(row, "completion")), where, pair=True)


def _alpaca(row: _Object, where: str) -> Chat:
    instruction = _text(row, "instruction")
    if row.get("input") not in (None, ""):
        instruction += "\n\n" + _text(row, "input")
    return Chat(_exchange(instruction, _text(row, "output")), where)


def _plain(row: _Object, where: str) -> Plain:
    return Plain(_text(row, "text"), where)


# In the order in which they are looked for: Hub datasets often carry `prompt` or `text` beside `messages`.
_SHAPES: dict[str, tuple[tuple[str, ...], Callable[[_Object, str], Record]]] = {
    "messages": (("messages",), _messages),
    "conversations": (("conversations",), _sharegpt),
    "prompt/completion": (("prompt", "completion"), _prompt_completion),
    "instruction/output": (("instruction", "output"), _alpaca),
    "text": (("text",), _plain),
}


def _shape_of(row: _Object) -> str | None:
    return next((name for name, (keys, _) in _SHAPES.items() if all(key in row for key in keys)), None)


def _exchange(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _conversation(value: object, role_key: str, content_key: str, role_of: Callable[[str], str]) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(phrase("formats.conversation_not_a_list", value=_kind(value)))
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise RowError(phrase("formats.message_not_an_object", number=number, item=_kind(item)))
        role = role_of(_text(item, role_key, number))
        # `"system": ""` is how many datasets say that there is none
        if role == "system" and item.get(content_key) in (None, ""):
            continue
        messages.append({"role": role, "content": _text(item, content_key, number)})
    _check_order([message["role"] for message in messages])
    return messages


def _check_order(roles: list[str]) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    for number, role in enumerate(turns, 1 + len(roles) - len(turns)):
        expected = ("assistant", "user")[(number - (len(roles) - len(turns))) % 2]
        if role != expected:
            raise RowError(phrase("formats.role_order", number=number, expected=expected, role=role))
    if not turns or turns[-1] != "assistant":
        raise RowError(phrase("formats.no_last_answer"))


def _text(row: _Object, key: str, number: int | None = None) -> str:
    """A row's text, or that of its message of this number."""
    if key not in row:
        raise RowError(phrase("formats.missing_key", label=_label(number), key=key))
    value = row[key]
    if not isinstance(value, str):
        raise RowError(phrase("formats.not_a_string", label=_label(number), key=key, value=_kind(value)))
    if not value.strip():
        raise RowError(phrase("formats.empty", label=_label(number), key=key))
    if match := _UNENCODABLE.search(value):
        what = phrase("formats.nul" if match.group() == "\0" else "formats.surrogate")
        raise RowError(
            phrase("formats.bad_character", label=_label(number), key=key, what=what, position=match.start() + 1)
        )
    return value


def _label(number: int | None) -> str:
    return "" if number is None else phrase("formats.label", number=number)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kind = _KINDS.get(type(value))
    return phrase(kind) if kind else type(value).__name__


def _names(keys: object) -> str:
    names = [repr(key) for key in keys] if isinstance(keys, (list, dict)) else []
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "(none)"


def _known() -> str:
    return "; ".join(_SHAPES)
