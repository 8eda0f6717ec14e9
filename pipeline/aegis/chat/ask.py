"""Asks the base, the trained model and the GGUF the same questions, in bounded time.

If a model cannot be asked, the result says why, so that a report can be written anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from aegis import progress
from aegis.background import Background
from aegis.chat import load
from aegis.config.recorded import recorded_config
from aegis.config.train_settings import TrainConfig
from aegis.errors import AegisError, first_line
from aegis.llama_cpp import Message, spared_threads
from aegis.messages import phrase
from aegis.report.answers import Answer, ModelAnswers
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run

_FAILURES = (AegisError, OSError, RuntimeError)
"""What a model may raise that cannot be loaded or asked; torch raises a RuntimeError for a full GPU."""


@dataclass(frozen=True)
class Limits:
    """The limits of `ask`.

    Attributes:
        count: number of held-out questions, if none are given.
        max_tokens: maximum tokens per answer.
        seconds: time limit for all answers of one model, loading not included; a longer answer is cut.
    """

    count: int = 4
    max_tokens: int = 96
    seconds: float = 60.0


def is_on_gpu() -> bool:
    """Whether transformers' models are asked on a GPU."""
    from aegis.model.device import choose_device

    return choose_device("auto").type == "cuda"


def questions_of(run: Run, count: int) -> list[str]:
    """Return questions from the rows that the run's training held out.

    Raises:
        AegisError: its data cannot be read any more, or has changed.
    """
    from aegis.data.training_set import load_heldout_questions
    from aegis.model.trained_base import trained_base

    manifest = read_manifest(run.adapter)
    base = trained_base(run.adapter)
    config = recorded_config(manifest, TrainConfig)
    return load_heldout_questions(config, base.tokenizer(), manifest.inputs.get("data", ""), count)


def ask(
    run: Run, questions: Sequence[str], limits: Limits, models: Sequence[str] = ("base", "trained", "gguf")
) -> list[ModelAnswers]:
    """Ask each of `models` the questions, taking the most likely token, so that a model always gives the same answers.

    On a GPU, llama.cpp answers on the processor's cores meanwhile.
    """
    stop = threading.Event()
    wanted = [who for who in ("base", "trained") if who in models]
    if "gguf" not in models:
        return _ask_in_transformers(run, wanted, questions, limits)
    if not (wanted and is_on_gpu()):
        return [*_ask_in_transformers(run, wanted, questions, limits), _ask_gguf(run, questions, limits, stop)]
    with Background(lambda: _ask_gguf(run, questions, limits, stop, spared_threads()), stop) as in_llama:
        return [*_ask_in_transformers(run, wanted, questions, limits), in_llama.result()]


def _ask_in_transformers(
    run: Run, wanted: Sequence[str], questions: Sequence[str], limits: Limits
) -> list[ModelAnswers]:
    """Ask the base and the trained model all questions at once; what one could not answer, the next is not asked."""
    found: list[ModelAnswers] = []
    chats = [_chat(question) for question in questions]
    try:
        for who, chat_model in load.load_for_answers(run, wanted):
            with progress.task(phrase("sampling.asking", who=who), limits.max_tokens, "token") as bar:
                until = time.monotonic() + limits.seconds
                answers = chat_model.answers(
                    chats, limits.max_tokens, expired=partial(_is_over, until), advance=bar.advance
                )
            found.append(ModelAnswers(who, "", tuple(answers)))
    except _FAILURES as error:
        return found + [ModelAnswers(who, "", (), _why(error)) for who in wanted[len(found) :]]
    return found


def _ask_gguf(
    run: Run, questions: Sequence[str], limits: Limits, stop: threading.Event, threads: int | None = None
) -> ModelAnswers:
    try:
        with (
            progress.task(phrase("sampling.asking", who="gguf"), limits.max_tokens, "token") as bar,
            load.load_gguf_for_answers(run, threads) as runtime,
        ):
            name = runtime.path.stem.rpartition("-")[2]
            until = time.monotonic() + limits.seconds
            found = runtime.chat_all(
                [_chat(question) for question in questions],
                limits.max_tokens,
                expired=lambda: _is_over(until) or stop.is_set(),
                advance=bar.advance,
            )
    except _FAILURES as error:
        return ModelAnswers("gguf", "", (), _why(error))
    return ModelAnswers("gguf", name, tuple(Answer(text, cut) for text, cut in found))


def _why(error: Exception) -> str:
    if isinstance(error, BrokenPipeError):  # the reader of our progress output has ended
        raise error
    return first_line(error)


def _is_over(until: float) -> bool:
    return time.monotonic() > until


def _chat(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]
