"""A chat format as literal text around each message, from which a conversation can be rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegis.llama_cpp.chat_template import Message


@dataclass(frozen=True)
class Folded:
    """A system message inside the first or the last user message: `lead`, its text, `between`, then the user's text."""

    lead: str
    between: str
    in_last: bool


@dataclass(frozen=True)
class Dialogue:
    """The literal text of a chat format.

    Attributes:
        opening: text before the first message if there is no system message (a default system prompt, often "").
        system: text before and after a system message, or its place in a user message; None if the format has no
            system message.
        user, assistant: text before and after such a message.
        cue: the generation prompt.
        skips_empty_system: whether an empty system message counts as none.
        departures: differences from the template, one sentence each.
    """

    opening: str
    system: tuple[str, str] | Folded | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    cue: str
    skips_empty_system: bool = False
    departures: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation, ending with the cue.

        Raises:
            ValueError: it has a system message, and the format has none.
        """
        first = messages[0] if messages and messages[0]["role"] == "system" else None
        if first is not None and not first["content"] and self.skips_empty_system:
            first, messages = None, messages[1:]
        parts = [] if first is not None and isinstance(self.system, tuple) else [self.opening]
        for number, message in enumerate(messages):
            around, content = {"user": self.user, "assistant": self.assistant}.get(message["role"]), message["content"]
            if around is None:
                if isinstance(self.system, Folded) and message is first:
                    continue
                if not isinstance(self.system, tuple):
                    raise ValueError("this format has no place for this system message")
                around = self.system
            elif first is not None and isinstance(self.system, Folded):
                host = len(messages) - 1 if self.system.in_last else 1
                if number == host:
                    content = self.system.lead + first["content"] + self.system.between + content
            parts += [around[0], content, around[1]]
        return "".join([*parts, self.cue])
