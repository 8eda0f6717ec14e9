"""Conversations with models: the GGUF in llama.cpp, the live model as it was trained, the base it started from.

Each speaker has a history of its own, so that models asked the same questions each go on from their own answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aegis import progress
from aegis.errors import UsageError
from aegis.llama_cpp import Message, Runtime, trained_context
from aegis.runs.manifest import read_manifest
from aegis.messages import phrase
from aegis.runs.run import Run, gguf_of_run


@dataclass(frozen=True)
class Manner:
    """How answers are given: at most so many tokens; temperature 0 takes the likeliest each time."""

    max_tokens: int = 256
    temperature: float = 0.7
    seed: int = 0


class Speaker(Protocol):
    """A model that continues a conversation."""

    name: str
    context: int

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a conversation up to where the model is to speak."""
        ...

    def say(self, messages: Sequence[Message], manner: Manner) -> Iterator[str]: ...


class GgufSpeaker:
    """A GGUF in llama.cpp, through its own chat template."""

    def __init__(self, runtime: Runtime) -> None:
        self.name = runtime.path.stem
        self.context = runtime.n_ctx
        self._runtime = runtime

    def count(self, messages: Sequence[Message]) -> int:
        return len(self._runtime.chat_tokens(messages))

    def say(self, messages: Sequence[Message], manner: Manner) -> Iterator[str]:
        return self._runtime.chat(messages, manner.max_tokens, manner.temperature, manner.seed)


@dataclass
class Conversation:
    """What was said to one speaker and what it answered."""

    speaker: Speaker
    manner: Manner
    history: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> Iterator[str]:
        """The answer, piece by piece; kept in the history when it is whole.

        Raises:
            UsageError: this question alone does not fit the context.
        """
        self.history.append({"role": "user", "content": text})
        self._make_room()
        answer = ""
        for piece in self.speaker.say(self.history, self.manner):
            # a SentencePiece word brings its space along; said again in the history, it would be one too many
            text = piece if answer else piece.lstrip()
            answer += text
            if text:
                yield text
        self.history.append({"role": "assistant", "content": answer})

    def _make_room(self) -> None:
        """Forget the oldest questions with their answers until half of an answer, at least, has room."""
        wanted = min(self.manner.max_tokens, self.speaker.context // 2)
        first = 1 if self.history[0]["role"] == "system" else 0
        forgotten = 0
        while self.speaker.count(self.history) + wanted > self.speaker.context and len(self.history) - first > 2:
            del self.history[first : first + 2]
            forgotten += 1
        if forgotten:
            progress.say(
                phrase(
                    "talk.forgotten",
                    name=self.speaker.name,
                    context=self.speaker.context,
                    forgotten=forgotten,
                )
            )


@contextmanager
def speakers(
    run: Run | None, gguf: Path | None, *, live: bool, compare: bool, context: int | None
) -> Iterator[list[Speaker]]:
    """Load who is to speak; with `compare`, the base comes first.

    Args:
        run: needed for the live model and the base.
        gguf: a file instead of the run's.
        live: base (as it was trained on, usually NF4), adapter and soul in transformers, instead of the GGUF.
        context: tokens; what the model is good for if None.

    Raises:
        UsageError: the live model or the base of a file whose run is not known.
        IntegrityError, EnvironmentFault: as loading does.
    """
    with ExitStack() as open_models:
        found: list[Speaker] = []
        if live or compare:
            if run is None:
                raise UsageError("talk.no_base")
            found += open_models.enter_context(in_transformers(run, live=live, compare=compare, context=context))
        if not live:
            path = gguf or gguf_of_run(_known(run))
            runtime = Runtime(path, n_ctx=context or trained_context(path))
            found.append(GgufSpeaker(open_models.enter_context(runtime)))
        yield found


def _known(run: Run | None) -> Run:
    if run is None:
        raise UsageError("talk.which")
    return run


@contextmanager
def in_transformers(run: Run, *, live: bool, compare: bool, context: int | None) -> Iterator[list[Speaker]]:
    """Load the base as it was trained on, the live model, or both, in this order.

    Raises:
        IntegrityError, EnvironmentFault: as loading does.
    """
    from aegis.model.base import find_base, load_tokenizer
    from aegis.model.live import live_model
    from aegis.model.load import choose_device, load_base
    from aegis.chat.transformers_model import TorchSpeaker

    training = read_manifest(run.adapter)
    base = find_base(str(training.facts["base_model"]), training.facts["revision"])
    tokenizer, device = load_tokenizer(base.folder), choose_device("auto")
    load_in: Any = training.config["load_in"]
    length = context or int(base.config.get("original_max_position_embeddings") or 4096)
    with ExitStack() as open_models:
        found: list[Speaker] = []
        if compare:
            found.append(TorchSpeaker("base", load_base(base.folder, load_in, device).eval(), tokenizer, length))
        if live:
            model = open_models.enter_context(live_model(base, run.adapter, load_in, device))
            found.append(TorchSpeaker("live", model, tokenizer, length))
        yield found
