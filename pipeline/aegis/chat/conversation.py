"""A chat: the protocol of a model that answers, its sampling parameters, and the history of one conversation.

Each model has its own history, so models that get the same questions continue from their own answers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aegis import progress
from aegis.llama_cpp import Message
from aegis.messages import phrase


@dataclass(frozen=True)
class SamplingParams:
    """How a model samples its answers; temperature 0 always takes the most likely token."""

    max_tokens: int = 256
    temperature: float = 0.7
    seed: int = 0


class ChatModel(Protocol):
    """A model that answers a conversation; `context` is its context length in tokens."""

    name: str
    context: int

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the number of tokens of a conversation up to the model's next turn."""
        ...

    def generate(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        """Yield the answer piece by piece."""
        ...


@dataclass
class Conversation:
    """One model, and its history of questions and answers."""

    chat_model: ChatModel
    sampling: SamplingParams
    history: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the answer piece by piece; even an interrupted one is added to the history, if it has any text.

        Raises:
            UsageError: the question alone does not fit the context.
            DataError: the model's template refuses it. A refused question is not in the history.
        """
        self.history.append({"role": "user", "content": text})
        answer = ""
        try:
            self._make_room()
            for piece in self.chat_model.generate(self.history, self.sampling):
                # a SentencePiece word includes the space before it; in the history it would be one space too many
                text = piece if answer else piece.lstrip()
                answer += text
                if text:
                    yield text
        except Exception:
            self.history.pop()
            raise
        except BaseException:  # Ctrl-C, or the caller has closed the generator
            self._keep(answer)
            raise
        self.history.append({"role": "assistant", "content": answer})

    def _keep(self, answer: str) -> None:
        if answer:
            self.history.append({"role": "assistant", "content": answer})
        else:
            self.history.pop()

    @property
    def last(self) -> dict[str, str] | None:
        """The last message, None if there is none."""
        return self.history[-1] if self.history else None

    @property
    def system(self) -> str:
        """The system message, "" if there is none."""
        return self.history[0]["content"] if self.history and self.history[0]["role"] == "system" else ""

    def start_over(self, system: str) -> None:
        """Clear the history, and begin it with this system message unless it is empty."""
        self.history = [{"role": "system", "content": system}] if system else []

    def take_back(self) -> str:
        """Remove the last question with its answer, and return the question; "" if there is none."""
        if not self.history or self.history[-1]["role"] != "assistant":
            return ""
        question = self.history[-2]["content"]
        del self.history[-2:]
        return question

    def answer_tokens(self) -> int:
        """Return the number of tokens that the last answer has beyond an empty one."""
        *before, last = self.history
        count = self.chat_model.count_tokens
        return count(self.history) - count([*before, {**last, "content": ""}])

    def _make_room(self) -> None:
        """Remove the oldest questions and answers until the next answer, or half of the context, is free."""
        wanted = min(self.sampling.max_tokens, self.chat_model.context // 2)
        first = 1 if self.history[0]["role"] == "system" else 0
        forgotten = 0
        while (
            self.chat_model.count_tokens(self.history) + wanted > self.chat_model.context
            and len(self.history) - first > 2
        ):
            del self.history[first : first + 2]
            forgotten += 1
        if forgotten:
            progress.say(
                phrase(
                    "talk.forgotten",
                    name=self.chat_model.name,
                    context=self.chat_model.context,
                    forgotten=forgotten,
                )
            )
