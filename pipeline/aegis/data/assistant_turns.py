"""Renders a chat to one text, and finds the assistant's turns in it by rendering prefixes.

Turn i begins where the rendering of the messages before it, with the generation prompt, ends. So the model is trained
on exactly what it must write when llama.cpp gives it that prompt. `{% generation %}` blocks are no alternative, because
many templates, such as Phi-3.5's, do not have them.

With two kinds of template, the text does not continue its prompts; it is rendered anyway, and this is reported:
templates that leave out the thoughts of earlier answers (Qwen3, QwQ), and templates whose prompt opens a thought, or
writes an empty one (QwQ, R1-Distill, Gemma 4, Apriel), if the row's answer has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from aegis.data import thoughts
from aegis.data.loss_mask import Turn
from aegis.data.records import Chat, Message
from aegis.data.rejects import RowError
from aegis.data.template import ChatTemplate
from aegis.data.written_parts import Written, is_in, leaves, written_parts
from aegis.errors import DataError
from aegis.messages import phrase

_MODE = re.compile(r"/(no_)?think\b")
"""The word in SmolLM3's system message that sets its mode; the template removes it."""


class Rendered(NamedTuple):
    """A rendered chat.

    Attributes:
        turns: the trained turns, in characters of `text`.
        lost_thoughts: whether the template leaves a thought of the row out.
        unopened: whether the prompt opens a thought and an answer of the row has none.
    """

    text: str
    turns: list[Turn]
    lost_thoughts: bool
    unopened: bool


def render_chat(template: ChatTemplate, chat: Chat, *, fold_system: bool = False) -> Rendered:
    """Render a chat in the first form that its template accepts.

    Args:
        template: the tokenizer's template.
        chat: the row.
        fold_system: if the template has no system message, put it before the first question.

    Raises:
        RowError: the template refuses the chat, or leaves something of it out.
        DataError: the template cannot be trained on.
    """
    refusal: RowError | None = None
    for form in _forms(chat, fold_system):
        try:
            return _Rendering(template, form).done()
        except RowError as error:
            refusal = error
    if not fold_system and chat.messages[0]["role"] == "system" and _is_taken(template, chat):
        refusal = RowError(phrase("chat.no_place_for_system", refusal=refusal))
    raise refusal or AssertionError("a chat has a form")


def _is_taken(template: ChatTemplate, chat: Chat) -> bool:
    """Whether the template accepts the chat with its system message before the first question."""
    try:
        render_chat(template, chat, fold_system=True)
    except RowError:
        return False
    return True


def _forms(chat: Chat, fold_system: bool) -> Iterator[Chat]:
    """Yield the chat unchanged, then in other forms that some templates need; llama.cpp also tries them.

    A call's arguments are an object or JSON; the text of a message that only calls is null or "".
    """
    calls = any("tool_calls" in message for message in chat.messages)
    blank = any(message["content"] is None for message in chat.messages)
    folds = (False, True) if fold_system and chat.messages[0]["role"] == "system" else (False,)
    for folded, as_json, fill in product(folds, (False, True) if calls else (False,), (False, True)[: 1 + blank]):
        messages = [_formed(message, as_json, fill) for message in chat.messages] if calls or blank else chat.messages
        context = chat.context
        if folded:
            messages, context = _folded(messages), frozenset(number - 1 for number in context)
        yield Chat(messages, chat.where, chat.pair, context, chat.tools, chat.variables)


def _formed(message: Message, as_json: bool, fill: bool) -> Message:
    formed: Message = {**message, "content": "" if fill and message["content"] is None else message["content"]}
    if as_json and "tool_calls" in message:
        formed["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}  # type: ignore[dict-item, index]
            for call in message["tool_calls"]
        ]
    return formed


def _folded(messages: list[Message]) -> list[Message]:
    system, question, *rest = messages
    return [{**question, "content": f"{system['content']}\n\n{question['content']}"}, *rest]


class _Rendering:
    """One chat in one form."""

    def __init__(self, template: ChatTemplate, chat: Chat) -> None:
        self._template = template
        self._chat = chat
        self._lost_thoughts = self._unopened = False

    def done(self) -> Rendered:
        chat, messages = self._chat, self._chat.messages
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        text = self._render(messages)
        self._check_variables(text)
        written = written_parts(messages, self._render_marked)
        text, added = self._with_last_thought(text, written[-1])
        if added:
            written[-1] = written[-1]._replace(thought=True)
        for number, message in enumerate(messages):
            self._check_message(message, text, written[number], is_last=number == answers[-1])
        starts = [self._start(text, number) for number in answers]
        turns = [
            Turn(start, _end_of(messages[number], text, start, limit), limit)
            for start, limit, number in zip(starts, [*starts[1:], len(text)], answers, strict=True)
            if number not in chat.context
        ]
        return Rendered(text, turns, self._lost_thoughts, self._unopened)

    def _render(self, messages: list[Message], *, prompt: bool = False) -> str:
        chat = self._chat
        return self._template.render(messages, prompt=prompt, tools=chat.tools, variables=chat.variables)

    def _render_marked(self, messages: list[Message]) -> str:
        chat = self._chat
        if chat.tools or chat.variables or any(len(message) > 2 for message in messages):
            return self._render(messages)
        # the words are alike for all chats with as many messages, so this one was mostly rendered before
        return self._template.render_plain(tuple((message["role"], message["content"]) for message in messages))

    def _check_variables(self, text: str) -> None:
        """Refuse tools and variables that do not appear in the text."""
        chat = self._chat
        for name in chat.variables:
            if not self._template.names(name, chat.tools):
                raise RowError(phrase("chat.unknown_variable", name=name))
        if chat.tools:
            names = [str(tool["function"]["name"]) for tool in chat.tools]  # type: ignore[index]
            bare = self._template.render(chat.messages, prompt=False, variables=chat.variables)
            if bare == text or any(name not in text for name in names):
                raise RowError(phrase("chat.key_left_out", key="tools"))

    def _with_last_thought(self, text: str, written: Written) -> tuple[str, bool]:
        """Add the last answer's thought, as the model writes it, if the template leaves it out; and whether it did."""
        *before, last = self._chat.messages
        content = last["content"] or ""
        parts = thoughts.split(content)
        answer = content
        if "reasoning_content" in last:
            if (written.thought and last["reasoning_content"].strip() in text) or "tool_calls" in last:
                return text, False
        elif parts and content.strip() not in text and not (written.thought and parts.thought.strip() in text):
            answer = parts.answer
        else:
            return text, False
        prompt = self._render(before, prompt=True)
        if "reasoning_content" in last:
            thought = thoughts.as_content(prompt, last["reasoning_content"], answer)
        else:
            thought = thoughts.continued(prompt, content)
        found = text.rfind(answer.strip())
        if thought is None or found < 0 or thoughts.is_closed(prompt):
            return text, False
        return prompt + thought + text[found + len(answer.strip()) :], True

    def _check_message(self, message: Message, text: str, written: Written, *, is_last: bool) -> None:
        """Refuse a message if the template does not write a part of it; an earlier thought may be missing."""
        content = (message["content"] or "").strip()
        if not (written.text and (is_in(content, text) or self._is_shown_in_parts(message, content, text, written))):
            raise RowError(phrase("chat.message_left_out", message=message["role"]))
        thought = message.get("reasoning_content", "").strip()
        if thought and not (written.thought and thought in text):
            if is_last or not self._template.names("reasoning_content"):
                raise RowError(phrase("chat.key_left_out", key="reasoning_content"))
            self._lost_thoughts = True
        for call in message.get("tool_calls", ()):
            if not (written.calls and all(is_in(leaf, text) for leaf in leaves(call["function"]))):
                raise RowError(phrase("chat.key_left_out", key="tool_calls"))

    def _is_shown_in_parts(self, message: Message, content: str, text: str, written: Written) -> bool:
        if message["role"] == "system":
            return _MODE.sub("", content).strip() in text
        parts = thoughts.split(content) if message["role"] == "assistant" else None
        if parts is None or parts.answer.strip() not in text:
            return False
        self._lost_thoughts = self._lost_thoughts or not (written.thought and parts.thought.strip() in text)
        return True

    def _start(self, text: str, number: int) -> int:
        """Return where the turn of message `number`, from 0, begins."""
        before = self._chat.messages[:number]
        for shown in (False, True):
            # without thoughts, as templates show earlier answers
            earlier = [thoughts.stripped(message) for message in before] if shown else before
            prompt = self._render(earlier, prompt=True)
            if text.startswith(prompt):
                return len(prompt)
            closed = self._before_thought(text, prompt, earlier, self._chat.messages[number])
            if closed is not None:
                self._unopened = True
                return closed
        raise DataError("chat.template_not_a_continuation", where=self._chat.where, number=number + 1)

    def _before_thought(self, text: str, prompt: str, before: list[Message], message: Message) -> int | None:
        """Return where the turn begins in a text without the thought that its prompt opens; None if that is not so."""
        try:
            shared = self._render(before)
        except RowError:  # the template takes no chat that ends with a question
            return None
        if not (text.startswith(shared) and prompt.startswith(shared)):
            return None
        found = (text.find(written, len(shared)) for written in thoughts.written(message) if written)
        answer = next((place for place in found if place >= 0), None)
        return thoughts.before_opening(prompt, text, len(shared), answer)


def _end_of(message: Message, text: str, start: int, limit: int) -> int:
    """Return where the message's text ends in text[start:limit]."""
    for written in thoughts.written(message):
        found = text.find(written, start, limit)
        if found >= 0:
            return found + len(written)
    raise RowError(phrase("chat.answer_left_out"))
