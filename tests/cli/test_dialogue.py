"""Tests of a chat on a terminal: each line is a question, a command, or empty."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from aegis.chat.conversation import Conversation, SamplingParams
from aegis.cli.dialogue import Dialogue
from aegis.errors import DataError, UsageError
from aegis.llama_cpp import Message
from tests.conftest import Recorder

Chat = Callable[[str], list[str]]


class Parrot:
    """A model that repeats the question and its seed, and is interrupted in the middle of "stop"."""

    name = "parrot"
    context = 4096
    stops = "stop"

    def __init__(self) -> None:
        self.heard: list[list[Message]] = []
        self.refuses: str | None = None

    def count_tokens(self, messages: Sequence[Message]) -> int:
        if messages[-1]["content"] == self.refuses:
            raise DataError("chat.not_utf8")
        return sum(len(message["content"]) for message in messages)

    def generate(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        self.heard.append([dict(message) for message in messages])
        question = messages[-1]["content"]
        if question == "too long":
            raise UsageError("talk.which")
        yield f"{question}/{sampling.seed}"
        if question == self.stops:
            raise KeyboardInterrupt


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def others() -> list[Parrot]:
    """Models that are asked after the first one; none unless a test adds them."""
    return []


@pytest.fixture
def chat(
    parrot: Parrot,
    others: list[Parrot],
    reporter: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Chat:
    """Type these lines at a terminal; return the printed answers."""

    def run(typed: str) -> list[str]:
        terminal = io.StringIO(typed)
        for stream in (terminal, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", terminal)
        Dialogue([Conversation(model, SamplingParams()) for model in (parrot, *others)]).run()
        return reporter.messages

    return run


def questions(parrot: Parrot) -> list[str]:
    return [heard[-1]["content"] for heard in parrot.heard]


def test_an_empty_line_is_ignored_and_bye_ends_the_chat(chat: Chat, parrot: Parrot) -> None:
    """A banner comes first, and the speed after each answer; lines after /bye are not read."""
    output = chat("hello\n\n   \nagain\n/bye\nmore\n")
    assert questions(parrot) == ["hello", "again"]
    assert "parrot" in output[0]
    assert "/?" in output[0]
    assert [text for text in output if text.startswith("7 tokens, ")] == output[1:]


def test_the_end_of_the_input_ends_the_chat(chat: Chat, parrot: Parrot) -> None:
    chat("hello")
    assert questions(parrot) == ["hello"]


def test_several_lines_are_one_question(chat: Chat, parrot: Parrot) -> None:
    """One that the input ends in is none."""
    chat('"""one\n\ntwo"""\n"""three"""\n"""four\n')
    assert questions(parrot) == ["one\n\ntwo", "three"]


def test_chat_commands_are_not_sent_as_questions(chat: Chat, parrot: Parrot, tmp_path: Path) -> None:
    """They change history, system message and seed; an unknown one is reported."""
    file = tmp_path / "chats.jsonl"
    output = chat(
        f"/system be brief\na\nb\n/regenerate\n/save {file}\n/save {file}\n/clear\nc\n/system\n/nope\n/?\n/save\n"
    )
    assert questions(parrot) == ["a", "b", "b", "c"]
    assert [message["content"] for message in parrot.heard[2]] == ["be brief", "a", "a/0", "b"]
    assert [message["content"] for message in parrot.heard[3]] == ["be brief", "c"]
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["messages"][-1] == {"role": "assistant", "content": "b/1"}
    assert "be brief" in output
    assert any("/nope" in text for text in output)
    assert any("/regenerate" in text for text in output)


def test_taking_back_without_a_question_is_reported(chat: Chat, parrot: Parrot) -> None:
    output = chat("/regenerate\n/save x\n/system\n")
    assert len(output) == 4
    assert parrot.heard == []


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Chat, parrot: Parrot) -> None:
    """The text so far stays in the history; a question that fails does not."""
    output = chat("stop\ntoo long\nhello\n")
    assert questions(parrot) == ["stop", "too long", "hello"]
    assert "stopped" in output
    assert [message["content"] for message in parrot.heard[-1]] == ["stop", "stop/0", "hello"]


def heard(parrot: Parrot) -> list[str]:
    return [message["content"] for message in parrot.heard[-1]]


def test_a_question_that_the_template_refuses_is_not_in_the_history(chat: Chat, parrot: Parrot) -> None:
    parrot.refuses = "refused"
    chat("refused\nhello\n")
    assert heard(parrot) == ["hello"]


@pytest.mark.parametrize("question", ["stop", "too long", "refused"])
@pytest.mark.parametrize("first", [True, False])
def test_models_side_by_side_have_the_same_questions(
    chat: Chat, parrot: Parrot, others: list[Parrot], question: str, first: bool
) -> None:
    """Also after Ctrl-C or an error in the answer of one: the question is taken back, or both have it."""
    other = Parrot()
    others.append(other)
    (other if first else parrot).stops = "never"
    (parrot if first else other).refuses = "refused"
    chat(f"before\n{question}\nafter\n")
    kept = ["stop"] if question == "stop" and not first else []
    for model in (parrot, other):
        assert [message["content"] for message in model.heard[-1] if message["role"] == "user"] == [
            "before",
            *kept,
            "after",
        ]
