"""Runs a chat on a terminal: editable lines, commands that begin with a slash, and answers that Ctrl-C stops."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from aegis import progress
from aegis.chat.conversation import Conversation
from aegis.errors import AegisError, DataError, UsageError
from aegis.messages import phrase
from aegis.runs.disk import at_home

_QUOTES = '"""'


class Dialogue:
    """A chat of one user with one or several models, each with its own history."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self._conversations = conversations
        self._typed = sys.stdin.isatty() and sys.stdout.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/clear": self._clear,
            "/system": self._system,
            "/regenerate": self._regenerate,
            "/save": self._save,
            "/?": self._help,
        }

    def run(self) -> None:
        """Ask and answer until /bye or the end of the input."""
        if self._typed:
            with suppress(ImportError):  # the console of Windows has its own line editing
                import readline  # noqa: F401
            model = self._conversations[-1].chat_model
            progress.say(phrase("chat.banner", name=model.name, context=model.context))
        while (text := self._read()) is not None:
            name, _, rest = text.partition(" ")
            if name == "/bye":
                return
            if name in self._commands:
                self._commands[name](rest.strip())
            elif text.startswith("/"):
                progress.say(phrase("chat.unknown", name=name))
            elif text:
                self.ask(text)

    def ask(self, text: str) -> None:
        """Ask every model one question; on a terminal, print each model's speed, and let Ctrl-C stop an answer.

        The models' histories have the same questions: one that not every model has answered is in none.
        """
        before = [conversation.last for conversation in self._conversations]
        if self._all_asked(text):
            return
        pairs = zip(self._conversations, before, strict=True)
        answered = [conversation for conversation, last in pairs if conversation.last is not last]
        if len(answered) < len(self._conversations):
            for conversation in answered:
                conversation.take_back()

    def _all_asked(self, text: str) -> bool:
        """Ask one model after the other; return whether the last one was asked and nothing stopped its answer."""
        for conversation in self._conversations:
            began = time.monotonic()
            pieces, alone = conversation.ask(text), len(self._conversations) == 1
            if not self._typed:
                progress.stream(conversation.chat_model.name, pieces, alone=alone)
                continue
            try:
                progress.stream(conversation.chat_model.name, pieces, alone=alone)
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                pieces.close()
                progress.say(phrase("chat.stopped"))
                return False
            except AegisError as error:  # a question that is too long does not end the chat
                progress.warn(str(error))
                return False
            seconds = time.monotonic() - began
            count = conversation.answer_tokens()
            progress.say(phrase("chat.speed", count=count, speed=count / seconds if seconds else 0.0))
        return True

    def _read(self) -> str | None:
        """Read a question, or several lines between triple quotes; return None at the end of the input."""
        try:
            text = self._line("> ")
            if text.startswith(_QUOTES):
                text = text.removeprefix(_QUOTES)
                while not text.rstrip().endswith(_QUOTES):
                    text += "\n" + self._line("... ")
                text = text.rstrip().removesuffix(_QUOTES)
            return text.strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not self._typed:
                raise
            sys.stdout.write("\n")
            progress.say(phrase("chat.leave"))
            return ""

    def _line(self, prompt: str) -> str:
        # no prompt if the input is not a terminal: a program may be reading stdout
        text = input(prompt if self._typed else "")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError("chat.not_utf8") from None
        return text

    def _clear(self, _rest: str) -> None:
        for conversation in self._conversations:
            conversation.start_over(conversation.system)
        progress.say(phrase("chat.cleared"))

    def _system(self, rest: str) -> None:
        if rest:
            for conversation in self._conversations:
                conversation.start_over(rest)
            progress.say(phrase("chat.cleared"))
        else:
            progress.say(self._conversations[-1].system or phrase("chat.no_system"))

    def _regenerate(self, _rest: str) -> None:
        question = ""
        for conversation in self._conversations:
            question = conversation.take_back() or question
            conversation.sampling = replace(conversation.sampling, seed=conversation.sampling.seed + 1)
        if question:
            self.ask(question)
        else:
            progress.say(phrase("chat.nothing_said"))

    def _save(self, rest: str) -> None:
        """Add the chat to a file as a line of training data."""
        history = self._conversations[-1].history
        if not rest or not history:
            progress.say(phrase("chat.save_where" if history else "chat.nothing_said"))
            return
        try:
            with at_home(rest).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": history}, ensure_ascii=False) + "\n")
        except (OSError, UsageError) as error:
            progress.warn(str(error))
        else:
            progress.say(phrase("chat.saved", path=rest))

    def _help(self, _rest: str) -> None:
        progress.say(phrase("chat.help"))
