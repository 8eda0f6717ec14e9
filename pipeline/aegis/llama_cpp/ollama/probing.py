"""Finds the literal text around each message of a chat template by rendering probes.

This describes every template that writes fixed text before and after each message, or puts the system message into a
user's message. Whether it describes a given template is checked: conversations are rendered from the parts and compared
with the template's own output. Known other effects of templates are tested, and named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from aegis.errors import DataError
from aegis.llama_cpp.begin_token import adds_begin_token
from aegis.llama_cpp.chat_template import Message
from aegis.llama_cpp.ollama.dialogue import Dialogue, Folded
from aegis.llama_cpp.rendering import Raised, chat_texts

Render = Callable[[Sequence[Message], bool], str]
"""The model's chat template: takes messages, and whether to add the generation prompt; returns the text."""


class TextOf(Protocol):
    """Renders a conversation with a template; None if the template refuses it."""

    def __call__(self, messages: Sequence[Message], cue: bool = True) -> str | None: ...


_SYSTEM, _USER, _REPLY, _AGAIN = "\ue000S", "\ue000U", "\ue000A", "\ue000B"
DATED = "the date is the one the chat template has for engines without a calendar"
# for a template that tests `strftime_now is defined`; jinja drops the newline after the tag, as in every template
_NO_CALENDAR = "{% set strftime_now = no_such_thing %}\n"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


_HABITS: tuple[tuple[str, list[Message]], ...] = (
    (
        "white space round a message stays, which the chat template cuts off",
        [_message("user", " \nx\n "), _message("assistant", "\n y "), _message("user", "\tz ")],
    ),
    (
        "the <think> part of an earlier answer stays, which the chat template leaves out",
        [_message("user", "x"), _message("assistant", "<think>\na\n</think>\n\nb"), _message("user", "z")],
    ),
    (
        "a system message after the first message is not written as the chat template does",
        [*(_message(role, "x") for role in ("system", "user", "assistant", "system", "user"))],
    ),
)
"""Effects of templates beyond fixed text, each with a conversation that shows it."""


def dialogue_of(tokenizer: Any) -> Dialogue | None:
    """Return the chat format of a transformers tokenizer's template; None if literal text cannot describe it.

    Raises:
        DataError: the template cannot be compiled, does not finish, or takes too much memory.
    """
    if not tokenizer.chat_template:
        return None
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # there are several templates, and none is the default
        return None

    def render(messages: Sequence[Message], cue: bool, template: str = _NO_CALENDAR + template) -> str:
        (text,) = chat_texts(tokenizer, [messages], prompt=cue, source=template)
        if isinstance(text, Raised):
            raise ValueError(text)
        return text

    # llama.cpp and Ollama add the begin token if the tokenizer does
    begin = tokenizer.bos_token if adds_begin_token(tokenizer) else None
    dialogue = take_apart(render, special_texts(tokenizer), begin)
    probe = [_message("user", "x")]
    if dialogue is not None and render(probe, True) != render(probe, True, template):
        return replace(dialogue, departures=(*dialogue.departures, DATED))
    return dialogue


def special_texts(tokenizer: Any) -> list[str]:
    """Return the texts of all special and added tokens, sorted."""
    return sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})


def take_apart(render: Render, special_tokens: Sequence[str], bos_token: str | None) -> Dialogue | None:
    """Derive the chat format of a template; None if literal text around messages does not describe it.

    Args:
        render: the template.
        special_tokens: texts of single tokens, which are never divided.
        bos_token: removed from the start of the rendered text, because llama.cpp and Ollama add it; None if they do
            not.
    """

    def text_of(messages: Sequence[Message], cue: bool = True) -> str | None:
        try:
            text = render(messages, cue)
        except DataError:  # it does not finish: nor would it the next time
            raise
        except Exception:  # a template may refuse a conversation with any exception
            return None
        return text[len(bos_token) :] if bos_token and text.startswith(bos_token) else text

    def agrees(dialogue: Dialogue, messages: Sequence[Message]) -> bool:
        return text_of(messages) == dialogue.render(messages)

    dialogue = _without_system(text_of, special_tokens)
    # texts of other lengths and more turns than the probes reveal a template that counts characters or messages
    longer = [
        *(_message("user", _USER), _message("assistant", _REPLY), _message("user", _AGAIN)),
        *(_message("assistant", "longer " + _REPLY * 9), _message("user", "x")),
        *(_message("assistant", _REPLY), _message("user", _AGAIN)),
    ]
    if dialogue is None or not (agrees(dialogue, longer) and agrees(dialogue, longer[:1])):
        return None
    system = _message("system", _SYSTEM)
    form = _system_form(dialogue, text_of([system, *longer[:3]]) or "")
    whole = replace(dialogue, system=form)
    if form is not None and agrees(whole, [system, *longer]) and agrees(whole, [system, longer[0]]):
        empty = text_of([_message("system", ""), *longer])
        dialogue = replace(whole, skips_empty_system=empty == text_of(longer))
    return replace(dialogue, departures=tuple(_departures(dialogue, text_of)))


def _without_system(text_of: TextOf, special_tokens: Sequence[str]) -> Dialogue | None:
    def pieces(*messages: Message, cue: bool = True) -> list[str]:
        return re.split("|".join((_USER, _REPLY, _AGAIN)), text_of(messages, cue) or "")

    user, reply, again = _message("user", _USER), _message("assistant", _REPLY), _message("user", _AGAIN)
    parts = pieces(user, reply, again)
    if len(parts) != 4:
        return None
    before, after_user, after_reply, end = parts
    reply_suffix = _common(after_reply, pieces(user, reply, cue=False)[-1], special_tokens)
    user_prefix = after_reply.removeprefix(reply_suffix)
    if not before.endswith(user_prefix):  # the last reply of a conversation has another end
        user_prefix = _common(before, after_reply, special_tokens, from_end=True)
    user_suffix = _common(end, pieces(user, cue=False)[-1], special_tokens)
    return Dialogue(
        opening=before.removesuffix(user_prefix),
        system=None,
        user=(user_prefix, user_suffix),
        assistant=(after_user.removeprefix(user_suffix), after_reply.removesuffix(user_prefix)),
        cue=end.removeprefix(user_suffix),
    )


def _system_form(bare: Dialogue, text: str) -> tuple[str, str] | Folded | None:
    """Guess from the text around it how a template renders a system message; the caller must check it."""
    before, found, after = text.partition(_SYSTEM)
    if not found:
        return None
    if _REPLY in before:  # in the last user message
        words, start = _AGAIN, bare.assistant[1] + bare.user[0]
        before = before.rpartition(_REPLY)[2]
    else:
        words, start = _USER, bare.opening + bare.user[0]
    between = after.partition(words)[0]
    if words == _USER and between.endswith(bare.user[0]):
        return before, between.removesuffix(bare.user[0])
    return Folded(before.removeprefix(start), between, in_last=words == _AGAIN)


def _departures(dialogue: Dialogue, text_of: TextOf) -> Iterator[str]:
    if dialogue.system is None:
        yield "a system message is left out"
    for sentence, messages in _HABITS:
        wanted = text_of(messages)
        if wanted is None or (messages[0]["role"] == "system" and dialogue.system is None):
            continue
        try:
            same = dialogue.render(messages) == wanted
        except ValueError:
            same = False
        if not same:
            yield sentence


def _common(one: str, other: str, special_tokens: Sequence[str], *, from_end: bool = False) -> str:
    """Return the longest common prefix (or suffix) of two texts that does not divide a special token."""
    units = re.compile(
        "|".join([*(re.escape(token) for token in sorted(special_tokens, key=len, reverse=True)), "."]), re.S
    )
    a, b = units.findall(one), units.findall(other)
    if from_end:
        a, b = a[::-1], b[::-1]
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    same = a[:count]
    return "".join(same[::-1] if from_end else same)
