"""Tests of answers in one batch: those that llama.cpp gives to each conversation alone, in bounded time and context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis.errors import UsageError
from aegis.llama_cpp import BatchRuntime, convert

QUESTIONS = ("春の花は何ですか。", "海には何がいますか。", "山で何をしますか。" * 5, "雨?")
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def runtime(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchRuntime]:
    path = tmp_path_factory.mktemp("gguf") / "f16.gguf"
    convert(quick_base, path, model_name="tiny phi-3")
    with BatchRuntime(path, n_ctx=512, threads=1) as opened:
        yield opened


def ask(runtime: BatchRuntime, max_tokens: int = 24, after: int = 10**6) -> tuple[list[tuple[str, bool]], int]:
    """Return the answers and the number of passes; the time is over after so many tokens."""
    steps: list[int] = []
    found = runtime.chat_all(CHATS, max_tokens, expired=lambda: len(steps) >= after, advance=lambda: steps.append(1))
    return found, len(steps)


def test_the_answers_are_those_of_one_conversation_at_a_time(runtime: BatchRuntime) -> None:
    """The questions are of different lengths, and so are the answers; they share their passes."""
    alone = ["".join(runtime.chat(chat, 24, 0.0)).strip() for chat in CHATS]
    assert len(set(alone)) > 1
    found, steps = ask(runtime)
    assert found == [(text, False) for text in alone]
    assert steps <= 25


def test_more_conversations_than_the_context_holds_are_answered_in_groups(
    runtime: BatchRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, steps = ask(runtime)
    monkeypatch.setattr(runtime, "n_ctx", 110)
    groups = list(runtime._groups([runtime.chat_tokens(chat) for chat in CHATS], 24))
    assert 1 < len(groups) < len(CHATS)
    in_groups, more_steps = ask(runtime)
    assert in_groups == together
    assert more_steps > steps


def test_answers_are_cut_when_their_time_or_their_tokens_are_over(runtime: BatchRuntime) -> None:
    whole, _ = ask(runtime)
    late, steps = ask(runtime, after=3)
    assert steps == 3
    assert any(cut for _, cut in late)
    assert all(text.startswith(part) for (text, _), (part, _) in zip(whole, late, strict=True))
    short, _ = ask(runtime, max_tokens=3)
    assert not any(cut for _, cut in short)
    assert [text for text, _ in short] == [text for text, _ in late]


def test_a_conversation_that_fills_the_context_is_refused(
    runtime: BatchRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "n_ctx", 20)
    with pytest.raises(UsageError) as caught:
        ask(runtime)
    assert caught.value.key == "runtime.context_full"
