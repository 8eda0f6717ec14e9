"""Tests that no value is lost silently, for rows of every shape with every known key.

Each value is a unique word. It must be in the tokens, trained on or not as it should be, or the row must be refused
with
the name of its key.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from aegis.data.chat import Encoder
from aegis.data.fields import HARMLESS, Fields
from aegis.data.formats import KNOWN_KEYS, records
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source

ROWS = 600
EVERYTHING = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% if style is defined %}<|im_start|>style\n{{ style }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = ("instruction", "prompt", "question", "query", "input", "text")
ANSWERS = ("output", "response", "answer", "completion")


class Maker:
    """Makes rows, and records the words to train on and the words that are only read."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.trained: dict[str, str] = {}
        self.read: dict[str, str] = {}
        self._numbers = count(chance.randrange(1000, 9000) * 1000)

    def word(self, key: str, *, trained: bool = False) -> str:
        word = f"w{next(self._numbers)}x"
        (self.trained if trained else self.read)[word] = key
        return word

    def maybe(self) -> bool:
        return self.chance.random() < 0.3

    def row(self) -> dict[str, object]:
        kinds = (self.messages, self.sharegpt, self.exchange, self.exchange, self.conversational, self.text)
        row = self.chance.choice(kinds)()
        if self.maybe():
            row |= {"id": 7, "Source": "somewhere", "notes": None, "empty": []}
        if self.chance.random() < 0.15:
            key = self.chance.choice(["summary", "notes", "label", "title", "rationale", "weight"])
            row[key] = self.word(key)
        return dict(self.chance.sample(list(row.items()), len(row)))

    def beside(self) -> dict[str, object]:
        row: dict[str, object] = {}
        if self.maybe():
            row["system"] = self.word("system")
        if self.maybe():
            tool = {"name": self.word("tools"), "description": self.word("tools"), "parameters": {}}
            tools = [{"type": "function", "function": tool} if self.maybe() else tool]
            row["tools"] = json.dumps(tools) if self.maybe() else tools
        if self.maybe():
            name = self.chance.choice(["style", "style", "colour"])
            row["chat_template_kwargs"] = {name: self.word("chat_template_kwargs" if name == "style" else name)}
        return row

    def text(self) -> dict[str, object]:
        return {"text": self.word("text", trained=True)} | ({"title": self.word("title")} if self.maybe() else {})

    def exchange(self) -> dict[str, object]:
        question, answer = self.chance.choice(QUESTIONS), self.chance.choice(ANSWERS)
        row = {question: self.word(question), answer: self.word(answer, trained=True), **self.beside()}
        for key in ("context", "input"):
            if self.maybe() and key != question:
                row[key] = self.word(key)
        if self.maybe():
            row["history"] = [[self.word("history"), self.word("history", trained=True)]]
        if self.maybe():
            row["reasoning_content"] = self.word("reasoning_content", trained=True)
        return row

    def turns(self, role: str, content: str, names: tuple[str, str, str]) -> Iterator[dict[str, object]]:
        system, user, assistant = names
        if self.maybe() and "system" not in self.read.values():
            yield {role: system, content: self.word(content)}
        for _ in range(self.chance.randint(1, 3)):
            texts = [self.word(content) for _ in range(2 if content == "content" and self.maybe() else 1)]
            yield {role: user, content: [{"type": "text", "text": text} for text in texts] if texts[1:] else texts[0]}
            if content == "content" and self.maybe():
                yield self.call(role, assistant)
                yield {role: "tool", content: self.word(content), "tool_call_id": "c1"}
            yield self.answer(role, content, assistant)

    def call(self, role: str, assistant: str) -> dict[str, object]:
        arguments = {"where": self.word("tool_calls", trained=True), "how": [self.word("tool_calls", trained=True)]}
        function = {
            "name": self.word("tool_calls", trained=True),
            "arguments": json.dumps(arguments) if self.maybe() else arguments,
        }
        text = self.word("content", trained=True) if self.maybe() else None
        return {
            role: assistant,
            "content": text,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        }

    def answer(self, role: str, content: str, assistant: str) -> dict[str, object]:
        flag = self.chance.choice([None, None, {"weight": 0}, {"weight": 1}, {"train": False}, {"loss": True}])
        trained = flag not in ({"weight": 0}, {"train": False})
        message: dict[str, object] = {role: assistant, content: self.word(content, trained=trained), **(flag or {})}
        if self.maybe():
            message["reasoning_content"] = self.word("reasoning_content", trained=trained)
        if self.chance.random() < 0.05:
            message["name"] = self.word("name")
        return message

    def messages(self) -> dict[str, object]:
        row = self.beside()
        keys = self.chance.choice([("role", "content"), ("from", "value")])
        return {"messages": list(self.turns(*keys, ("system", "user", "assistant"))), **row}

    def sharegpt(self) -> dict[str, object]:
        row = self.beside()
        keys = self.chance.choice([("role", "content"), ("from", "value")])
        return {"conversations": list(self.turns(*keys, ("system", "human", "gpt"))), **row}

    def conversational(self) -> dict[str, object]:
        """A prompt and its completion as lists of messages; an answer in the prompt is only read."""
        row = self.beside()
        prompt = list(self.turns("role", "content", ("system", "user", "assistant")))
        self.read |= self.trained
        self.trained = {}
        prompt.append({"role": "user", "content": self.word("content")})
        completion = [{"role": "assistant", "content": self.word("content", trained=True)}]
        return {"prompt": prompt, "completion": completion, **row}


def faults(made: Maker, row: dict[str, object], path: Path, tokenizer: Any) -> list[str]:
    """Return a row's faults: none if it is refused by a key's name, or if every word is where it should be."""
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    rejects = Rejects("x")
    examples = Encoder(tokenizer).encode(list(records(open_source(path), rejects)), rejects)
    if not examples:
        ((_, reason),) = rejects.listed
        keys = {*made.read.values(), *made.trained.values(), "assistant"}
        return [] if any(key in reason for key in keys) else [f"refused without a name: {reason}"]
    (example,) = examples
    trained = tokenizer.decode(example.ids[example.trained])
    read = tokenizer.decode(example.ids[~example.trained])
    return [f"{key} is not trained on" for word, key in made.trained.items() if word not in trained] + [
        f"{key} is not read" for word, key in made.read.items() if word not in read
    ]


@pytest.fixture(scope="module")
def tokenizer(byte_level: Callable[..., Any]) -> Any:
    return byte_level(EVERYTHING, ["<|im_start|>", "<|im_end|>"])


def everything_wrong(tokenizer: Any, path: Path) -> tuple[list[str], int]:
    """Return the faults of all rows, and the number of accepted rows."""
    found, taken = [], 0
    for seed in range(ROWS):
        made = Maker(random.Random(seed))
        row = made.row()
        wrong = faults(made, row, path, tokenizer)
        found += [f"seed {seed}: {text}: {row}" for text in wrong]
        rejects = Rejects("x")
        taken += len(list(records(open_source(path), rejects)))
    return found, taken


def test_every_value_is_read_or_trained_on_or_named(tokenizer: Any, tmp_path: Path) -> None:
    found, taken = everything_wrong(tokenizer, tmp_path / "data.jsonl")
    assert found == []
    assert ROWS / 2 < taken < ROWS


@pytest.mark.parametrize("careless", ["unused keys", "system", "context", "parts"])
def test_a_reader_that_drops_a_value_is_detected(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, careless: str
) -> None:
    """The control: each of these readers loses one kind of value, and the rows show it."""
    if careless == "unused keys":
        monkeypatch.setattr(Fields, "finish", lambda *_: None)
    elif careless == "system":
        monkeypatch.setattr("aegis.data.formats._SYSTEM", ())
        monkeypatch.setattr("aegis.data.fields.HARMLESS", HARMLESS | {"system"})
    elif careless == "context":
        monkeypatch.setattr("aegis.data.conversation._is_trained", _always)
    else:
        monkeypatch.setattr("aegis.data.conversation._content", _first_part)
    assert everything_wrong(tokenizer, tmp_path / "data.jsonl")[0] != []


def _always(fields: Fields, role: str) -> bool:
    for key in ("weight", "train", "loss"):
        fields.take(key)
    return True


def _first_part(fields: Fields, key: str, *, may_be_blank: bool) -> str | None:
    value = fields.take(key)
    return str(value[0]["text"]) if isinstance(value, list) else value if isinstance(value, str) else None


def test_no_key_is_both_read_and_ignored() -> None:
    assert not KNOWN_KEYS & HARMLESS
