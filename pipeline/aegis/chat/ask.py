"""The same questions to the base, to the trained model and to the finished file, each alone in memory, in bounded time.

What cannot be asked, and why, is part of the answer: a report is written either way.
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
from aegis.runs.facts import TrainFacts
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run


@dataclass(frozen=True)
class Limits:
    """Bounds on the asking.

    Attributes:
        count: questions, where none are given.
        max_tokens: of one answer.
        seconds: for all answers of one model, loading it left out; the answer that runs over is cut.
    """

    count: int = 4
    max_tokens: int = 96
    seconds: float = 60.0


def questions_of(run: Run, count: int) -> list[str]:
    """Questions that the run's training held out.

    Raises:
        AegisError: as reading its data does; it may be gone, or changed.
    """
    from aegis.data.training_set import load_heldout_questions
    from aegis.model.base import find_base, load_tokenizer

    manifest = read_manifest(run.adapter)
    facts = TrainFacts.of(manifest)
    base = find_base(facts.base_model, facts.revision)
    config = TrainConfig.model_validate(manifest.config)
    return load_heldout_questions(config, load_tokenizer(base.folder), manifest.inputs["data"], count)


def ask(
    run: Run, questions: Sequence[str], limits: Limits, models: Sequence[str] = ("base", "trained", "gguf")
) -> list[ModelAnswers]:
    """Put the questions to each of `models`, greedily: so asked, the same model says the same."""
    asked: dict[str, Callable[[], AbstractContextManager[list[ChatModel]]]] = {
        "base": lambda: load.load_transformers_models(run, live=False, compare=True, context=None),
        "trained": lambda: load.load_transformers_models(run, live=True, compare=False, context=None),
        "gguf": lambda: load.load_models(run, None, live=False, compare=False, context=None),
    }
    return [_voice(who, open_model, questions, limits) for who, open_model in asked.items() if who in models]


def _voice(
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
    except BrokenPipeError:  # whoever read our progress has gone
        raise
    except (AegisError, OSError, RuntimeError) as error:  # torch tells of a full GPU with a RuntimeError
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
