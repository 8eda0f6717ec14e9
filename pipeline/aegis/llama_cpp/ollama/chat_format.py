"""A chat format as literal text round each message, enough to put a conversation together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegis.llama_cpp.chat_template import Message


@dataclass(frozen=True)
class Folded:
    """A system message inside the first or the last user message: `lead`, its text, `between`, the user's words."""

    lead: str
    between: str
    in_last: bool


@dataclass(frozen=True)
class Dialogue:
    """Literal text of a chat format.

    Attributes:
        opening: before the first message when there is no system message (a default system prompt, often nothing).
        system: text before and after a system message, or where in a user message it goes; None if the format has
            no place for one.
        user, assistant: text before and after such a message.
        cue: what asks the model to speak.
        skips_empty_system: an empty system message is as none.
        departures: what the template does and this does not, a sentence each.
    """

    opening: str
    system: tuple[str, str] | Folded | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    cue: str
    skips_empty_system: bool = False
    departures: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message]) -> str:
        """Put a conversation together, ending with the cue.

        Raises:
            ValueError: it has a system message, and the format has no place for one.
        """
        first = messages[0] if messages and messages[0]["role"] == "system" else None
        if first is not None and not first["content"] and self.skips_empty_system:
            first, messages = None, messages[1:]
        parts = [] if first is not None and isinstance(self.system, tuple) else [self.opening]
        for place, message in enumerate(messages):
            around, content = {"user": self.user, "assistant": self.assistant}.get(message["role"]), message["content"]
            if around is None:
                if isinstance(self.system, Folded) and message is first:
                    continue
                if not isinstance(self.system, tuple):
                    raise ValueError("this format has no place for this system message")
                around = self.system
            elif first is not None and isinstance(self.system, Folded):
                host = len(messages) - 1 if self.system.in_last else 1
                if place == host:
                    content = self.system.lead + first["content"] + self.system.between + content
            parts += [around[0], content, around[1]]
        return "".join([*parts, self.cue])
