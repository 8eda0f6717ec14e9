"""Tests that every row shape becomes one of two records, and that any other row is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.data.formats import records
from aegis.data.records import Chat, Plain, Record
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source
from aegis.errors import UsageError

WriteRows = Callable[..., Path]
U, A = {"role": "user", "content": "問い"}, {"role": "assistant", "content": "答え"}
S = {"role": "system", "content": "丁寧に"}


def read(path: Path) -> tuple[list[Record], list[tuple[str, str]]]:
    rejects = Rejects(str(path), skip_bad=100)
    found = list(records(open_source(path), rejects))
    return found, [(where.removeprefix(f"{path}:"), reason) for where, reason in rejects.listed]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [S, U, A, U, A], "id": 7}, [S, U, A, U, A]),
        ({"messages": [{"role": "system", "content": ""}, U, A]}, [U, A]),
        ({"messages": [U, A], "prompt": " 問い ", "text": None}, [U, A]),  # what stands in the messages is not lost
        ({"messages": [U, A], "text": "### 問い\n### 答え"}, [U, A]),
        ({"prompt": "問い", "completion": "答え"}, [U, A]),
        ({"instruction": "問い", "output": "答え"}, [U, A]),
        ({"instruction": "問い", "input": "", "output": "答え"}, [U, A]),
        ({"instruction": "問", "input": "い", "output": "答え"}, [{"role": "user", "content": "問\n\nい"}, A]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "丁寧に"},
                    {"from": "human", "value": "問い"},
                    {"from": "gpt", "value": "答え"},
                ]
            },
            [S, U, A],
        ),
    ],
)
def test_chats_of_every_shape_are_read(write_rows: WriteRows, row: object, messages: object) -> None:
    (chat,), bad = read(write_rows(row))
    assert isinstance(chat, Chat)
    assert (chat.messages, bad) == (messages, [])
    assert chat.where.endswith("data.jsonl:1")


def test_only_prompt_and_completion_are_a_pair(write_rows: WriteRows) -> None:
    assert read(write_rows({"prompt": "a", "completion": "b"}))[0][0].pair is True  # type: ignore[union-attr]
    assert read(write_rows({"instruction": "a", "output": "b"}))[0][0].pair is False  # type: ignore[union-attr]


def test_plain_text_rows_are_read(write_rows: WriteRows) -> None:
    path = write_rows({"text": " 本文\n"})
    assert read(path) == ([Plain(" 本文\n", f"{path}:1")], [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("null", "a row must be an object, found null"),
        ("3.5", "a row must be an object, found a number"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": [{"role": "system", "content": ""}]}, "the conversation is empty"),
        (
            {"messages": [{**U, "role": "User"}, A]},
            "message 1: the role 'User' is not known: use system, user, assistant",
        ),
        ({"conversations": [{"from": "Human", "value": "x"}]}, "the role 'Human' is not known"),
        ({"messages": [{**U, "role": "tool_call"}, A]}, "message 1: 'content' is a string, but not JSON"),
        ({"messages": "text"}, "'messages' is a string, but not JSON"),
        ({"messages": 3}, "must be a list of messages, found a number"),
        ({"messages": None}, "must be a list of messages, found null"),
        ({"messages": ["x", A]}, "message 1 must be an object, found a str"),
        ({"messages": [U]}, "must end with the assistant"),
        ({"messages": [U, A, U]}, "must end with the assistant"),
        ({"messages": [A, U]}, "wrong role order: message 1 must be the user's, found 'assistant'"),
        ({"messages": [S, A]}, "wrong role order: message 2 must be the user's, found 'assistant'"),
        ({"messages": [U, U, A]}, "wrong role order: message 2 must be the assistant's, found 'user'"),
        ({"messages": [U, S, A]}, "wrong role order: message 2 must be the assistant's, found 'system'"),
        ({"messages": [U, {"role": "tool", "content": "x"}]}, "found 'tool'"),
        ({"messages": [U, {"role": "assistant"}]}, "message 2: missing key 'content'"),
        (
            {"messages": [U, {"role": "assistant", "content": None}]},
            "message 2: 'content' must be a string, found null",
        ),
        ({"messages": [U, {"role": "assistant", "content": ["x"]}]}, "'content' has a part that is not text: a str"),
        ({"messages": [U, {"role": "assistant", "content": " \n"}]}, "message 2: 'content' is empty"),
        ({"messages": [{"role": 1, "content": "x"}, A]}, "message 1: 'role' must be a string, found a number"),
        ({"conversations": [{"from": "human"}]}, "message 1: missing key 'value'"),
        ({"prompt": "x"}, "keys 'prompt' do not match any known shape"),
        ({}, "keys (none) do not match any known shape"),
        ({"prompt": "x", "completion": 3}, "'completion' must be a string, found a number"),
        ({"instruction": "x", "input": 3, "output": "y"}, "'input' must be a string, found a number"),
        ({"text": True}, "'text' must be a string, found true or false"),
        ({"text": ""}, "'text' is empty"),
        ('{"text": "a\\u0000"}', "'text' holds a NUL character at character 2"),
        ('{"text": "ab\\ud83d"}', "'text' holds half of a surrogate pair at character 3"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(write_rows: WriteRows, row: object, reason: str) -> None:
    good, ((where, found),) = read(write_rows(row))
    assert (good, where) == ([], "1")
    assert reason in found


def test_a_pair_of_surrogates_is_read_as_one_character(write_rows: WriteRows) -> None:
    (record,), bad = read(write_rows('{"text": "\\ud83d\\ude00"}'))
    assert (record.text, bad) == ("😀", [])  # type: ignore[union-attr]


def test_the_first_usable_shape_holds_for_the_file(write_rows: WriteRows) -> None:
    good, bad = read(write_rows({"odd": 1}, {"text": "a"}, {"prompt": "a", "completion": "b"}, {"txt": "a"}))
    assert len(good) == 1
    assert bad[0][0] == "1"
    assert bad[0][1].startswith("keys 'odd' do not match any known shape: messages, conversations")
    assert bad[1:] == [
        ("3", "the earlier rows have the shape text, this one has prompt/completion"),
        ("4", "missing key 'text'"),
    ]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("question", "is not NAME=KNOWN"),
        ("=question", "is not NAME=KNOWN"),
        ("q=qestion", "did you mean 'question'"),
        ("q=nonsense", "no column is called 'nonsense'"),
    ],
)
def test_an_invalid_column_mapping_is_a_usage_error(write_rows: WriteRows, pair: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        list(records(open_source(write_rows({"text": "a"})), Rejects("x"), [pair]))


def test_columns_name_keys_of_rows_and_of_messages(write_rows: WriteRows) -> None:
    row = {"dialog": [{"who": "user", "says": "問い", "mood": 1}, {"who": "gpt", "says": "答え"}], "extra": "x"}
    columns = ["dialog=messages", "who=role", "says=content", "mood=ignore", "extra=ignore"]
    (chat,) = list(records(open_source(write_rows(row)), Rejects("x"), columns))
    assert chat.messages == [U, A]  # type: ignore[union-attr]


def test_a_duplicate_column_is_refused(write_rows: WriteRows) -> None:
    rejects = Rejects("x", skip_bad=1)
    row = {"question": "a", "q": "b", "answer": "c"}
    assert list(records(open_source(write_rows(row)), rejects, ["q=question"])) == []
    assert "which the row already has" in rejects.listed[0][1]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"ID": "x", "text": "問い", "output": "答え"}, [U, A]),
        ({"question": "問い", "answer": "答え", "category": "qa"}, [U, A]),
        ({"prompt": "問い", "response": "答え"}, [U, A]),
        ({"instruction": "問", "context": "い", "response": "答え"}, [{"role": "user", "content": "問\n\nい"}, A]),
        ({"input": "問い", "output": "答え", "instruction": ""}, [U, A]),
        ({"instruction": "問い", "output": "答え", "system": "丁寧に", "history": [["問い", "答え"]]}, [S, U, A, U, A]),
        ({"system_prompt": "丁寧に", "question": "問い", "response": "答え", "id": "1"}, [S, U, A]),
        ({"prompt": [S, U], "completion": [A]}, [S, U, A]),
        ({"messages": [{"from": "human", "value": "問い"}, {"from": "gpt", "value": "答え"}]}, [U, A]),
        ({"conversations": [U, A], "system": "丁寧に"}, [S, U, A]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "問い"}]}, A]}, [U, A]),
        ({"messages": '[{"role": "user", "content": "問い"}, {"role": "assistant", "content": "答え"}]'}, [U, A]),
    ],
)
def test_rows_of_well_known_data_sets_are_read(write_rows: WriteRows, row: object, messages: object) -> None:
    (chat,), bad = read(write_rows(row))
    assert (chat.messages, bad) == (messages, [])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference pair"),
        ({"chosen": [U, A], "rejected": [U, A]}, "preference pair"),
        ({"messages": [{**U, "name": "Alice"}, A]}, "message 1: 'name' would be left out"),
        ({"messages": [U, {**A, "weight": 0.5}]}, "message 2: 'weight' must be 0 or 1"),
        ({"messages": [{**U, "train": True}, A]}, "message 1: 'train' asks to train on a message of the user"),
        ({"messages": [U, {**A, "weight": 0}]}, "no message of the assistant is to be trained on"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}, "not text: 'image_url'"),
        ({"messages": [U, {"role": "assistant", "tool_calls": [{"x": 1}]}]}, "'tool_calls' must hold the name"),
        ({"messages": [U, {"role": "assistant", "tool_calls": "{"}]}, "'tool_calls' is a string, but not JSON"),
        ({"messages": [U, A], "tools": [{"description": "x"}]}, "'tools' must be a list of function definitions"),
        ({"messages": [U, A], "chat_template_kwargs": [1]}, "'chat_template_kwargs' must be an object"),
        ({"messages": [S, U, A], "system": "other"}, "'system' differs from the system message"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "must be a list of [question, answer] pairs"),
        ({"text": "a", "title": "b"}, "'title' would be left out"),
    ],
)
def test_a_value_that_would_be_lost_is_refused_by_name(write_rows: WriteRows, row: object, reason: str) -> None:
    good, ((_, found),) = read(write_rows(row))
    assert good == []
    assert reason in found


def test_the_advice_to_take_the_preferred_answers_works(write_rows: WriteRows) -> None:
    for row, columns in (
        ({"chosen": [U, A], "rejected": [U, A]}, ["chosen=messages", "rejected=ignore"]),
        ({"prompt": "問い", "chosen": "答え", "rejected": "x"}, ["chosen=completion", "rejected=ignore"]),
    ):
        (chat,) = list(records(open_source(write_rows(row)), Rejects("x"), columns))
        assert chat.messages == [U, A]  # type: ignore[union-attr]
