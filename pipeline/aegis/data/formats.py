"""Converts rows of several shapes to records: a chat or a plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from aegis.data.columns import Columns
from aegis.data.conversation import MESSAGE_KEYS, check_order, conversation, function_of
from aegis.data.fields import Fields, kind, names
from aegis.data.json_rows import HOLDERS
from aegis.data.records import Chat, Message, Plain, Record
from aegis.data.rejects import Rejects, RowError
from aegis.data.sources import Source
from aegis.messages import phrase

_LISTS = ("messages", "conversations", "conversation")
_QUESTIONS = ("instruction", "prompt", "question", "query", "input", "text")
_ANSWERS = ("output", "response", "answer", "completion")
_SYSTEM = ("system", "system_prompt")
_MORE = ("input", "context")
"""Keys of further text for a question, which is added after it."""
_PAIR = ("chosen", "rejected")

KNOWN_KEYS = frozenset(
    (*MESSAGE_KEYS, *_LISTS, *_QUESTIONS, *_ANSWERS, *_SYSTEM, *_MORE, "history", "tools", "chat_template_kwargs")
)
"""The known keys, which `--columns` can assign to a column."""


class _Shape(NamedTuple):
    """A shape of rows; `keys` are the keys that every row of this shape has."""

    keys: tuple[str, ...]
    convert: Callable[[Fields, tuple[str, ...], Columns, str], Record]

    @property
    def name(self) -> str:
        return "/".join(self.keys)


def records(
    source: Source, rejects: Rejects, columns: Sequence[str] = (), left_out: set[str] | None = None
) -> Iterator[Record]:
    """Yield a record for every usable row of `source`; the other rows go to `rejects`.

    The first row with a known shape sets the shape of the source: a row of another shape is more likely a mistake (two
    joined files) than intended. A row with a key that is neither used nor known to be harmless is refused, and the
    message names the key.

    Args:
        columns: the user's names for keys, such as `question=instruction` or `notes=ignore`.
        left_out: is given the names of the harmless columns, which no record has.

    Raises:
        UsageError: one of `columns` does not have this form.
    """
    renaming = Columns(columns, KNOWN_KEYS)
    shape: _Shape | None = None
    for where, value in source.rows(rejects):
        try:
            if not isinstance(value, dict):
                raise RowError(phrase("formats.row_not_an_object", value=kind(value)))
            row = renaming.renamed(value)
            shape = shape or _shape_of(row)
            if shape is None:
                raise _unknown(row)
            _check_shape(shape, row)
            record = shape.convert(Fields(row, left_out=left_out), shape.keys, renaming, where)
        except RowError as error:
            rejects.add(where, str(error), of_columns=error.of_columns)
        else:
            yield record


def _shape_of(row: Mapping[str, object]) -> _Shape | None:
    if all(row.get(key) for key in _PAIR):
        raise RowError(phrase("formats.preference"))
    for key in _LISTS:
        if key in row:
            return _Shape((key,), _chat)
    # an empty `input` beside an `instruction` is not a question
    question = next((key for key in _QUESTIONS if row.get(key)), None)
    question = question or next((key for key in _QUESTIONS if key in row), None)
    answer = next((key for key in _ANSWERS if row.get(key)), None) or next((k for k in _ANSWERS if k in row), None)
    if question and answer:
        return _Shape((question, answer), _exchange)
    return _Shape(("text",), _plain) if "text" in row else None


def _unknown(row: Mapping[str, object]) -> RowError:
    """Return the refusal of a row without a known shape, which may be a document that holds the rows."""
    keys = names(dict(row))
    for key in HOLDERS:
        if (found := row.get(key)) == []:
            return RowError(phrase("formats.holds_no_rows", value=keys, key=key))
        if isinstance(found, list) and all(isinstance(item, dict) for item in found):
            return RowError(phrase("formats.holds_rows", value=keys, key=key))
    return RowError(phrase("formats.unknown_shape", value=keys, known=_known()), of_columns=True)


def _check_shape(shape: _Shape, row: Mapping[str, object]) -> None:
    missing = [key for key in shape.keys if key not in row]
    if not missing:
        return
    other = _shape_of(row)
    if other:
        raise RowError(phrase("formats.other_shape", shape=shape.name, other=other.name))
    raise RowError(phrase("formats.missing_keys", missing=names(missing)), of_columns=True)


def _known() -> str:
    questions, answers = ", ".join(_QUESTIONS), ", ".join(_ANSWERS)
    return phrase("formats.known", lists=", ".join(_LISTS), questions=questions, answers=answers)


def _chat(fields: Fields, keys: tuple[str, ...], columns: Columns, where: str) -> Chat:
    messages, context = conversation(fields.structure(keys[0]), columns, fields.left_out)
    return _finished(fields, messages, context, where)


def _plain(fields: Fields, keys: tuple[str, ...], columns: Columns, where: str) -> Plain:
    text = fields.text("text")
    fields.finish([text])
    return Plain(text, where)


def _exchange(fields: Fields, keys: tuple[str, ...], columns: Columns, where: str) -> Chat:
    """Convert a question and its answer; or, as in trl, a list of messages and the messages that complete it."""
    question, answer = keys
    prompt, completion = fields.take(question), fields.take(answer)
    if isinstance(prompt, list) and isinstance(completion, list):
        messages, context = conversation([*prompt, *completion], columns, fields.left_out, trained_from=len(prompt))
        return _finished(fields, messages, context, where)
    question_text = fields.text(question)
    for key in _MORE:
        if key != question and key in fields:
            question_text += "\n\n" + fields.text(key)
    reply: Message = {"role": "assistant", "content": fields.text(answer)}
    if "reasoning_content" in fields:
        reply["reasoning_content"] = fields.text("reasoning_content")
    messages = [*_history(fields), {"role": "user", "content": question_text}, reply]
    return _finished(fields, messages, frozenset(), where, pair=keys == ("prompt", "completion"))


def _history(fields: Fields) -> list[Message]:
    """Read earlier turns in LLaMA-Factory's form: [[question, answer], ...]."""
    value = fields.structure("history")
    if value is None:
        return []
    messages: list[Message] = []
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise fields.error("formats.history", value=kind(turn))
        for role, text in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": Fields({"history": text}).text("history")})
    return messages


def _finished(
    fields: Fields, messages: list[Message], context: frozenset[int], where: str, *, pair: bool = False
) -> Chat:
    """Make the chat from its messages and the row's other values: system text, tools, variables of the template."""
    key = fields.first(_SYSTEM)
    if key:
        system: Message = {"role": "system", "content": fields.text(key)}
        if messages[0]["role"] != "system":
            messages = [system, *messages]
            context = frozenset(number + 1 for number in context)
        elif messages[0]["content"] != system["content"]:
            raise fields.error("formats.two_systems", key=key)
    tools, variables = _tools(fields), _variables(fields)
    fields.finish([message["content"] for message in messages if message["content"]])
    check_order(messages)
    is_bare = len(messages) == 2 and not tools and not variables and "reasoning_content" not in messages[1]
    return Chat(messages, where, pair=pair and is_bare, context=context, tools=tools, variables=variables)


def _tools(fields: Fields) -> list[dict[str, object]] | None:
    """Return definitions in llama.cpp's form, {"type": "function", "function": {...}}; wrap a bare function."""
    found = fields.structure("tools")
    if not found:
        return None
    tools: list[dict[str, object]] = []
    for item in found if isinstance(found, list) else [found]:
        definition = function_of(item)
        if definition is None:
            raise fields.error("formats.not_a_tool")
        outer, inner = definition
        tools.append(dict(outer) if outer is not inner else {"type": "function", "function": dict(outer)})
    return tools


def _variables(fields: Fields) -> Mapping[str, object]:
    found = fields.structure("chat_template_kwargs")
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise fields.error("formats.not_variables", value=kind(found))
    return {name: value for name, value in found.items() if value is not None}
