"""Tests of chat: several turns, a history per model, and streaming for people and programs."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aegis import progress
from aegis.chat.conversation import Conversation, SamplingParams
from aegis.chat.load import load_for_answers, load_models
from aegis.chat.transformers_model import TransformersModel
from aegis.cli import app
from aegis.errors import UsageError
from aegis.llama_cpp import Message
from aegis.model.base import find_base, load_tokenizer
from aegis.model.live_model import live_model
from aegis.model.load import load_base
from aegis.runs.run import Run
from aegis.verification.token_parity import chat_ids
from tests.conftest import Recorder

GREEDY = SamplingParams(max_tokens=12, temperature=0)
USER = {"role": "user", "content": "こんにちは。"}


@pytest.fixture
def run(finished_run: Run) -> Run:
    """Return a merged and exported run, trained hard enough that soul and adapter change the answers."""
    return finished_run


class Echo:
    """A model with one token per letter that answers with the number of messages it got, after a space."""

    name = "echo"

    def __init__(self, context: int = 1000) -> None:
        self.context = context
        self.heard: list[list[Message]] = []

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"]) for message in messages)

    def generate(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        self.heard.append([dict(message) for message in messages])
        yield from f" {len(messages)}"


def test_every_turn_continues_the_conversation() -> None:
    echo = Echo()
    talk = Conversation(echo, GREEDY, [{"role": "system", "content": "s"}])
    assert ["".join(talk.ask(text)) for text in ("a", "b", "c")] == ["2", "4", "6"]
    assert [message["role"] for message in echo.heard[-1]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert [message["content"] for message in echo.heard[-1]] == ["s", "a", "2", "b", "4", "c"]


def test_a_full_context_forgets_the_oldest(reporter: Recorder) -> None:
    """Complete turns, never the system message or the question itself, with a message."""
    echo = Echo(context=60)
    talk = Conversation(echo, GREEDY, [{"role": "system", "content": "s" * 10}])
    for text in ("a" * 20, "b" * 10, "c" * 10, "d" * 25):
        "".join(talk.ask(text))
    contents = [message["content"][:1] for message in echo.heard[-1]]
    assert contents[0] == "s"
    assert contents[-1] == "d"
    assert "a" not in contents
    assert all(echo.count_tokens(heard) + GREEDY.max_tokens <= 60 for heard in echo.heard)
    assert "oldest turns" in reporter.messages[-1]


def test_the_text_of_a_stopped_answer_stays_in_the_history() -> None:
    """And a question that got no answer at all is not: roles alternate, whatever happened."""
    talk = Conversation(Echo(), GREEDY)
    pieces = talk.ask("a")
    assert next(pieces) == "1"
    pieces.close()
    assert talk.history == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "1"}]

    class Mute(Echo):
        def generate(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
            raise KeyboardInterrupt
            yield ""

    talk.chat_model = Mute()
    with pytest.raises(KeyboardInterrupt):
        list(talk.ask("b"))
    assert len(talk.history) == 2
    assert talk.take_back() == "a"
    assert (talk.take_back(), talk.history) == ("", [])


def greedily(model: Any, tokenizer: Any, messages: list[dict[str, str]], count: int) -> str:
    """Return the greedy answer from the logits of complete prompts, without a cache or generate()."""
    ids = chat_ids(tokenizer, messages)
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in model.generation_config.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_the_live_model_answers_with_adapter_and_soul(run: Run, quick_base: Path) -> None:
    """The likeliest tokens of the model as it was trained, through cache and thread; the base says something else."""
    messages = [{"role": "user", "content": "先生は何をする人ですか。"}]
    tokenizer = load_tokenizer(quick_base)
    with live_model(find_base(str(quick_base)), run.adapter, "4bit", torch.device("cpu")) as model:
        wanted = greedily(model, tokenizer, messages, GREEDY.max_tokens)
    with load_models(run, None, live=True, compare=True, context=None) as found:
        base, live = found
        output = {chat_model.name: "".join(chat_model.generate(messages, GREEDY)) for chat_model in (base, live)}
        assert live.count_tokens(messages) == len(chat_ids(tokenizer, messages))
    assert output["live"] == wanted != ""
    assert output["base"] != wanted


def test_answers_in_one_batch_are_those_of_one_at_a_time(run: Run, quick_base: Path) -> None:
    """Base and trained model are one load; short and long questions have each its own answer."""
    asked = [
        [{"role": "user", "content": text}] for text in ("春?", "先生は何をする人ですか。", "海には何がいますか。" * 3)
    ]
    tokenizer, base = load_tokenizer(quick_base), find_base(str(quick_base))
    steps: list[int] = []
    found = {
        who: [
            answer.text for answer in model.answers(asked, 12, expired=lambda: False, advance=lambda: steps.append(1))
        ]
        for who, model in load_for_answers(run, ("base", "trained"))
    }
    assert 12 < len(steps) <= 24
    with live_model(base, run.adapter, "4bit", torch.device("cpu")) as model:
        wanted = [greedily(model, tokenizer, messages, 12).strip() for messages in asked]
    assert found["trained"] == wanted
    assert len(set(wanted)) > 1
    plain = load_base(base.folder, "4bit", torch.device("cpu"))
    assert found["base"] == [greedily(plain, tokenizer, messages, 12).strip() for messages in asked]
    assert found["base"] != wanted


def test_answers_are_cut_when_their_time_is_over(run: Run) -> None:
    """A control has the time; a question without room for an answer is an error."""
    ((_, model),) = load_for_answers(run, ("trained",))
    whole, cut = (model.answers([[USER]], 12, expired=lambda over=over: over, advance=int)[0] for over in (False, True))
    assert whole.text.startswith(cut.text)
    assert len(cut.text) < len(whole.text)
    assert (whole.cut, cut.cut) == (False, True)
    model.context = 4
    with pytest.raises(UsageError, match="context of 4"):
        model.answers([[USER]], 12, expired=lambda: False, advance=int)


def test_the_same_seed_gives_the_same_answer(run: Run) -> None:
    messages = [USER]
    with load_models(run, None, live=True, compare=False, context=None) as (live,):
        shown = {
            seed: ["".join(live.generate(messages, SamplingParams(12, 1.5, seed))) for _ in range(2)] for seed in (0, 1)
        }
    assert shown[0][0] == shown[0][1]
    assert shown[1][0] == shown[1][1]
    assert shown[0] != shown[1]


def test_a_failure_in_the_middle_is_raised(quick_base: Path) -> None:
    class Broken:
        device = torch.device("cpu")

        def generate(self, **_: object) -> None:
            raise ZeroDivisionError

    chat_model = TransformersModel("live", Broken(), load_tokenizer(quick_base), 64)
    with pytest.raises(ZeroDivisionError):
        list(chat_model.generate([USER], GREEDY))


def test_a_context_without_room_for_an_answer_is_an_error(quick_base: Path) -> None:
    chat_model = TransformersModel("live", SimpleNamespace(device=torch.device("cpu")), load_tokenizer(quick_base), 4)
    with pytest.raises(UsageError, match="context of 4"):
        next(chat_model.generate([USER], GREEDY))


def test_generation_ends_when_the_reader_stops(quick_base: Path) -> None:
    """After Ctrl-C at the first piece, generation stops; otherwise this model would never end."""

    class Endless:
        device = torch.device("cpu")

        def generate(self, *, input_ids: Any, streamer: Any, stopping_criteria: Any, **_: object) -> None:
            streamer.on_finalized_text("a")
            while not stopping_criteria[0](input_ids, None).all():
                time.sleep(0.01)

    pieces = TransformersModel("live", Endless(), load_tokenizer(quick_base), 64).generate([USER], GREEDY)
    assert next(pieces) == "a"
    pieces.close()  # type: ignore[attr-defined]
    assert not any("generate" in thread.name for thread in threading.enumerate())


@pytest.fixture
def aegis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def call(*arguments: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aegis", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            app.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    yield call
    progress.install(progress.SilentReporter())


def test_a_gguf_answers_several_turns(run: Run, aegis: Any) -> None:
    """Two questions typed, two answers, one a line; the first is the one a single prompt gets."""
    code, out, err = aegis(
        "chat", "--run", run.root, "--temperature", 0, "--max-tokens", 8, typed="こんにちは。\nはい。\n"
    )
    assert code == 0, err
    assert len(out.splitlines()) == 2
    again = aegis("chat", "--gguf", run.first_gguf(), "-p", "こんにちは。", "--temperature", 0, "--max-tokens", 8)
    assert again[:2] == (0, out.splitlines()[0] + "\n")


@pytest.mark.parametrize("flags", [("--json", "chat"), ("chat", "--json")])
def test_json_output_has_every_piece_and_every_answer(run: Run, aegis: Any, flags: tuple[str, str]) -> None:
    """Pieces as they come, then the whole of each answer, by name; nothing else on stdout."""
    code, out, err = aegis(
        *flags, "--run", run.root, "--compare", "base", "--temperature", 0, "--max-tokens", 8, typed="はい。\n\n"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    answers = [row for row in rows if row["event"] == "answer"]
    assert [row["speaker"] for row in answers] == ["base", run.first_gguf().stem]
    for answer in answers:
        pieces = [row["text"] for row in rows if row["event"] == "piece" and row["speaker"] == answer["speaker"]]
        assert "".join(pieces) == answer["text"] != ""


def test_models_side_by_side_are_named(run: Run, aegis: Any) -> None:
    code, out, err = aegis(
        "chat", "--run", run.root, "--live", "--compare", "base", "-p", "はい。", "--temperature", 0, "--max-tokens", 6
    )
    assert code == 0, err
    assert [line.partition(": ")[0] for line in out.splitlines()] == ["base", "live"]


@pytest.mark.parametrize("flags", [("--live",), ("--compare", "base")])
def test_a_gguf_alone_cannot_be_compared_with_the_base(run: Run, aegis: Any, flags: tuple[str, ...]) -> None:
    code, out, err = aegis("chat", "--gguf", run.first_gguf(), *flags, "-p", "x")
    assert (code, out, "give --run" in err) == (2, "", True)
