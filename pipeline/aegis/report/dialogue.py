"""A chat template taken apart: the literal text round each message, found by rendering probes.

Enough for every template that puts fixed text before and after each message. Whether it is enough for this one is
not assumed: the parts are put together again and compared with what the template renders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""Messages and whether to end with the generation prompt, to text: the model's own chat template."""

_SYSTEM, _USER, _REPLY, _AGAIN = "\ue000S", "\ue000U", "\ue000A", "\ue000B"


@dataclass(frozen=True)
class Dialogue:
    """Literal text of a chat format.

    Attributes:
        opening: before the first message when there is no system message (a default system prompt, often nothing).
        system, user, assistant: text before and after such a message; `system` is None if the format has no place
            for one.
        cue: what asks the model to speak.
    """

    opening: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    cue: str

    def render(self, messages: Sequence[Message]) -> str:
        """Put a conversation together, ending with the cue."""
        parts = [] if messages and messages[0]["role"] == "system" else [self.opening]
        for message in messages:
            around = {"system": self.system, "user": self.user, "assistant": self.assistant}[message["role"]]
            if around is None:
                raise ValueError("this format has no system message")
            parts += [around[0], message["content"], around[1]]
        return "".join([*parts, self.cue])


def dialogue_of(tokenizer: Any) -> Dialogue | None:
    """The chat format of a transformers tokenizer's template, if fixed text round each message describes it."""
    if not tokenizer.chat_template:
        return None

    def render(messages: Sequence[Message], cue: bool) -> str:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=cue)
        return text

    return take_apart(render, special_texts(tokenizer), tokenizer.bos_token)


def special_texts(tokenizer: Any) -> list[str]:
    """Every text that is one token by decree, sorted."""
    return sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})


def take_apart(render: Render, special_tokens: Sequence[str], bos_token: str | None) -> Dialogue | None:
    """Derive the dialogue format of a template, or None if fixed text round messages does not describe it.

    Args:
        render: the template.
        special_tokens: texts that are one token; no cut goes through one.
        bos_token: left out where the rendering starts with it, since llama.cpp and Ollama add it themselves.
    """

    def text_of(messages: Sequence[Message], cue: bool = True) -> str:
        text = render(messages, cue)
        return text[len(bos_token) :] if bos_token and text.startswith(bos_token) else text

    def pieces(messages: Sequence[Message], cue: bool = True) -> list[str]:
        return re.split("|".join((_SYSTEM, _USER, _REPLY, _AGAIN)), text_of(messages, cue))

    user, reply, again = _message("user", _USER), _message("assistant", _REPLY), _message("user", _AGAIN)
    system = _message("system", _SYSTEM)
    # other lengths and more turns than the probes: what counts letters or messages shows here
    longer = [user, reply, again, _message("assistant", "longer " + _REPLY * 9), _message("user", "x"), reply, again]
    try:
        before, after_user, after_reply, end = pieces([user, reply, again])
        plain_end = pieces([user], cue=False)[-1]
        reply_suffix = _common(after_reply, pieces([user, reply], cue=False)[-1], special_tokens)
        user_prefix = after_reply.removeprefix(reply_suffix)
        if not before.endswith(user_prefix):  # the last reply of a conversation ends in another way
            user_prefix = _common(before, after_reply, special_tokens, from_end=True)
        user_suffix = _common(end, plain_end, special_tokens)
        dialogue = Dialogue(
            opening=before.removesuffix(user_prefix),
            system=None,
            user=(user_prefix, user_suffix),
            assistant=(after_user.removeprefix(user_suffix), after_reply.removesuffix(user_prefix)),
            cue=end.removeprefix(user_suffix),
        )
    except Exception:  # a template may raise anything; then it is not of this simple kind
        return None
    try:
        system_prefix, system_suffix, _ = pieces([system, user])
        whole = Dialogue(**{**vars(dialogue), "system": (system_prefix, system_suffix.removesuffix(user_prefix))})
        if _agrees(whole, text_of, [system, *longer]):
            dialogue = whole
    except Exception:  # noqa: S110 (templates without a system message raise; the format then has none)
        pass
    try:
        return dialogue if _agrees(dialogue, text_of, longer) and _agrees(dialogue, text_of, [user]) else None
    except Exception:  # it rendered the probes, and not this
        return None


def _agrees(dialogue: Dialogue, text_of: Callable[..., str], messages: Sequence[Message]) -> bool:
    return text_of(messages) == dialogue.render(messages)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _common(one: str, other: str, special_tokens: Sequence[str], *, from_end: bool = False) -> str:
    """The longest common prefix (or suffix) of two texts that cuts through no special token."""
    units = re.compile(
        "|".join([*(re.escape(token) for token in sorted(special_tokens, key=len, reverse=True)), "."]), re.S
    )
    a, b = units.findall(one), units.findall(other)
    if from_end:
        a, b = a[::-1], b[::-1]
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    same = a[:count]
    return "".join(same[::-1] if from_end else same)
