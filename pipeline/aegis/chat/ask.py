"""Asks the base, the trained model and the GGUF the same questions, one model at a time, in bounded time.

If a model cannot be asked, the result says why, so that a report can be written anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from aegis import progress
from aegis.chat import load
from aegis.chat.conversation import ChatModel, SamplingParams
from aegis.config.settings import TrainConfig
from aegis.errors import AegisError, first_line
from aegis.messages import phrase
from aegis.report.answers import Answer, ModelAnswers
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run


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


def questions_of(run: Run, count: int) -> list[str]:
    """Return questions from the rows that the run's training held out.

    Raises:
        AegisError: its data cannot be read any more, or has changed.
    """
    from aegis.data.training_set import load_heldout_questions
    from aegis.model.trained_base import trained_base

    manifest = read_manifest(run.adapter)
    base = trained_base(run.adapter)
    config = TrainConfig.model_validate(manifest.config)
    return load_heldout_questions(config, base.tokenizer(), manifest.inputs["data"], count)


def ask(
    run: Run, questions: Sequence[str], limits: Limits, models: Sequence[str] = ("base", "trained", "gguf")
) -> list[ModelAnswers]:
    """Ask each of `models` the questions, at temperature 0, so that the same model always gives the same answers."""
    loaders: dict[str, Callable[[], AbstractContextManager[list[ChatModel]]]] = {
        "base": lambda: load.load_transformers_models(run, live=False, compare=True, context=None),
        "trained": lambda: load.load_transformers_models(run, live=True, compare=False, context=None),
        "gguf": lambda: load.load_models(run, None, live=False, compare=False, context=None),
    }
    return [_ask_model(who, open_model, questions, limits) for who, open_model in loaders.items() if who in models]


def _ask_model(
    who: str,
    open_model: Callable[[], AbstractContextManager[list[ChatModel]]],
    questions: Sequence[str],
    limits: Limits,
) -> ModelAnswers:
    answers: list[Answer] = []
    try:
        with (
            progress.task(phrase("sampling.asking", who=who), len(questions), "question") as bar,
            open_model() as (chat_model,),
        ):
            name = chat_model.name.rpartition("-")[2] if who == "gguf" else ""
            until = time.monotonic() + limits.seconds
            for question in questions:
                if time.monotonic() > until:
                    break
                answers.append(_answer(chat_model, question, limits.max_tokens, until))
                bar.advance()
    except BrokenPipeError:  # the reader of our progress output has ended
        raise
    except (AegisError, OSError, RuntimeError) as error:  # torch raises a RuntimeError for a full GPU
        return ModelAnswers(who, "", tuple(answers), first_line(error))
    return ModelAnswers(who, name, tuple(answers))


def _answer(chat_model: ChatModel, question: str, max_tokens: int, until: float) -> Answer:
    text = ""
    pieces = chat_model.generate([{"role": "user", "content": question}], SamplingParams(max_tokens, 0.0))
    for piece in pieces:
        text += piece
        if time.monotonic() > until:
            return Answer(text.strip(), cut=True)
    return Answer(text.strip())
