"""Reads a row's list of messages: roles, texts, thoughts, tool calls, and which turns are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from aegis.data.columns import Columns
from aegis.data.fields import Fields, kind
from aegis.data.json_values import DECODER, reason
from aegis.data.records import Message
from aegis.data.rejects import RowError
from aegis.messages import phrase

MESSAGE_KEYS = (
    "role", "from", "content", "value", "weight", "train", "loss", "name", "tool_calls", "tool_call_id",
    "function_call", "reasoning_content", "reasoning", "thinking",
)  # fmt: skip
"""The known keys of a message."""

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_call": "tool_call",
}
_KNOWN = ("system", "user", "assistant", "tool", "tool_call", *_ROLES)
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class Conversation(NamedTuple):
    """`context`: numbers, from 0, of the assistant's messages that are not trained."""

    messages: list[Message]
    context: frozenset[int]


def conversation(value: object, columns: Columns, left_out: set[str], *, trained_from: int = 0) -> Conversation:
    """Read a list of messages, each with `role` and `content`, or with `from` and `value`.

    Args:
        value: the row's value.
        columns: the user's names for keys.
        left_out: is given the names of harmless keys of messages.
        trained_from: number of the first message that may be trained, from 0.

    Raises:
        RowError: it is not such a list, or none of the assistant's messages is trained.
    """
    if not isinstance(value, list):
        raise RowError(phrase("formats.conversation_not_a_list", value=kind(value)))
    messages: list[Message] = []
    context = set()
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise RowError(phrase("formats.message_not_an_object", number=number, item=kind(item)))
        message, is_trained = _message(Fields(columns.renamed(item), number, left_out))
        # in many datasets, `"system": ""` means that there is no system message
        if message["role"] == "system" and not message["content"]:
            trained_from -= number <= trained_from
            continue
        if message["role"] == "assistant" and (not is_trained or len(messages) < trained_from):
            context.add(len(messages))
        messages.append(message)
    if not messages:
        raise RowError(phrase("formats.no_messages"))
    check_order(messages)
    if all(number in context for number, message in enumerate(messages) if message["role"] == "assistant"):
        raise RowError(phrase("formats.nothing_trained"))
    return Conversation(messages, frozenset(context))


def _message(fields: Fields) -> tuple[Message, bool]:
    role_key = "role" if "role" in fields or "from" not in fields else "from"
    written = fields.text(role_key)
    role = _ROLES.get(written, written)
    if written not in _KNOWN:
        raise fields.error("formats.unknown_role", role=written, known=", ".join(_KNOWN))
    content_key = "content" if "content" in fields or "value" not in fields else "value"
    if role_key == "from" and "content" not in fields:
        content_key = "value"
    if role == "tool_call":
        message: Message = {"role": "assistant", "content": None, "tool_calls": _calls(fields, content_key)}
    else:
        message = {"role": role, "content": None}
        _add_calls(message, fields)
        may_be_blank = role in ("system", "tool") or "tool_calls" in message
        message["content"] = _content(fields, content_key, may_be_blank=may_be_blank)
    if role == "tool" and message["content"] is None:
        message["content"] = ""  # a function that returns nothing
    thought_key = fields.first(_THOUGHTS)
    if thought_key and role == "assistant":
        message["reasoning_content"] = fields.text(thought_key)
    if "tool_call_id" in fields:
        message["tool_call_id"] = str(fields.take("tool_call_id"))
    if role == "tool" and "name" in fields:
        message["name"] = fields.text("name")
    is_trained = _is_trained(fields, role)
    fields.finish([message["content"]] if message["content"] else [])
    return message, is_trained


def _content(fields: Fields, key: str, *, may_be_blank: bool) -> str | None:
    """Return the message's text; the texts of a list of parts are joined by newlines, as in llama.cpp's server."""
    value = fields.take(key)
    if value is None and may_be_blank:
        return None
    if not isinstance(value, list):
        return fields.text(key)
    texts = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            what = part.get("type") if isinstance(part, Mapping) else None
            raise fields.error("formats.part_not_text", key=key, part=repr(what) if what else kind(part))
        rest = {name: given for name, given in part.items() if name not in ("type", "text")}
        Fields(rest, left_out=fields.left_out).finish()
        texts.append(fields.checked(key, part["text"]))
    joined = "\n".join(texts)
    if not joined.strip():
        raise fields.error("formats.empty", key=key)
    return joined


def _add_calls(message: Message, fields: Fields) -> None:
    key = fields.first(("tool_calls", "function_call"))
    if key and message["role"] == "assistant":
        message["tool_calls"] = _calls(fields, key)


def _calls(fields: Fields, key: str) -> list[dict[str, object]]:
    """Return tool calls in the form of templates: {"type": "function", "function": {"name", "arguments"}}, parsed."""
    found = fields.structure(key)
    calls = []
    for item in found if isinstance(found, list) else [found]:
        call = function_of(item)
        if call is None:
            raise fields.error("formats.not_a_call", key=key)
        outer, inner = call
        arguments = _parsed(fields, inner.get("arguments"))
        fields.checked(key, json.dumps([inner["name"], arguments], ensure_ascii=False))
        known = ("id", "type", "index", "function", "name", "arguments")
        rest = {name: value for name, value in {**outer, **inner}.items() if name not in known}
        Fields(rest, left_out=fields.left_out).finish()
        ids = {"id": outer["id"]} if outer.get("id") else {}
        calls.append({**ids, "type": "function", "function": {"name": inner["name"], "arguments": arguments}})
    return calls


def function_of(item: object) -> tuple[Mapping[str, object], Mapping[str, object]] | None:
    """Return the object of a function, and the inner object with its name; None if there is no name."""
    if not isinstance(item, Mapping):
        return None
    inner = item.get("function", item)
    return (item, inner) if isinstance(inner, Mapping) and isinstance(inner.get("name"), str) else None


def _parsed(fields: Fields, arguments: object) -> object:
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return DECODER.decode(arguments)
    except (ValueError, RecursionError) as error:
        raise fields.error("formats.not_json", key="arguments", error=reason(error)) from None


def _is_trained(fields: Fields, role: str) -> bool:
    """Return whether `weight`, `train` and `loss` allow a turn to be trained; without them, it is."""
    wanted: list[bool] = []
    for key in ("weight", "train", "loss"):
        value: Any = fields.take(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise fields.error("formats.weight", key=key, value=value)
        wanted.append(bool(value))
        if wanted[-1] and role not in ("assistant", "tool_call"):
            raise fields.error("formats.only_answers", key=key, role=role)
    return all(wanted)


def check_order(messages: list[Message]) -> None:
    """Check the order of roles: user, assistant, and tools between an assistant's call and its answer.

    Raises:
        RowError: they do not.
    """
    before, start = "", 1 if messages and messages[0]["role"] == "system" else 0
    for number, message in enumerate(messages[start:], start + 1):
        role = message["role"]
        called = before == "assistant" and "tool_calls" in messages[number - 2]
        if role == "tool" and (called or before == "tool"):
            before = role
            continue
        expected = "tool" if called else "user" if before in ("", "assistant") else "assistant"
        if role != expected:
            raise RowError(phrase("formats.role_order", number=number, expected=expected, role=role))
        before = role
    if before != "assistant":
        raise RowError(phrase("formats.no_last_answer"))
