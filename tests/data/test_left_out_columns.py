"""Tests which columns that no record has are left out, which are refused, and that the user hears of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis import progress
from aegis.config.resolve import resolve
from aegis.config.train_settings import TrainConfig
from aegis.data.columns import Columns
from aegis.data.dataset import prepare
from aegis.data.formats import KNOWN_KEYS, records
from aegis.data.records import Record
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source
from aegis.errors import UsageError
from aegis.messages import phrase

WriteRows = Callable[..., Path]
U, A = {"role": "user", "content": "問い"}, {"role": "assistant", "content": "答え"}


def read(path: Path, *columns: str) -> tuple[list[Record], list[str], set[str]]:
    """Return the records, the reasons of the bad rows, and the names of the harmless columns."""
    rejects, left_out = Rejects(str(path), skip_bad=100), set[str]()
    found = list(records(open_source(path), rejects, columns, left_out))
    return found, [reason for _, reason in rejects.listed], left_out


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"question": "2", "answer": "4", "explanation": "Because 2+2=4, a long reason"}, "explanation"),
        ({"question": "犬", "answer": "dog", "example": "The dog (犬) sleeps."}, "example"),
        ({"question": "Is a cat an animal?", "answer": "Yes, it is.", "hint": "cat"}, "hint"),
        ({"messages": [U, A], "text": "### 問い\n### 答え\n### 別の答え"}, "text"),
        ({"messages": [U, A], "text": "### 答え\n### 問い"}, "text"),
        ({"messages": [U, A], "text": "### 問い"[:-1]}, "text"),
        ({"messages": [{**U, "note": "問"}, A]}, "note"),
        ({"text": "a text and more", "title": "text"}, "title"),
    ],
)
def test_a_column_that_only_shares_words_with_the_texts_of_a_row_is_refused(
    write_rows: WriteRows, row: object, column: str
) -> None:
    found, reasons, _ = read(write_rows(row))
    assert (found, reasons) == ([], [_unused(column, "message 1: " if column == "note" else "")])


@pytest.mark.parametrize(
    "extra",
    [
        {"prompt": " 問い\n"},
        {"question": "答え"},
        {"text": "<s>[INST] 問い [/INST] 答え</s>"},
        {"text": "<|im_start|>user\n問い<|im_end|>\n<|im_start|>assistant\n答え<|im_end|>\n"},
        {"text": "### Instruction:\n問い\n\n### Response:\n答え"},
        {"text": "Human: 問い\n\nAssistant: 答え"},
        {"text": "ユーザー：問い\nアシスタント：答え"},
    ],
)
def test_a_column_that_repeats_a_text_or_the_whole_conversation_is_left_out(
    write_rows: WriteRows, extra: dict[str, str]
) -> None:
    found, reasons, _ = read(write_rows({"messages": [U, A], **extra}))
    assert (len(found), reasons) == (1, [])


def test_a_column_that_repeats_one_of_the_joined_texts_is_left_out(write_rows: WriteRows) -> None:
    found, reasons, _ = read(write_rows({"instruction": "問い", "input": "文", "output": "答え", "prompt": "問い"}))
    assert (len(found), reasons) == (1, [])


@pytest.mark.parametrize(
    "extra",
    [
        {"task": "Summarise this in one line"},
        {"topic": "cats"},
        {"Topics": ["cats"]},
        {"keywords": "a, b"},
        {"genre": "x"},
    ],
)
def test_a_text_that_may_say_what_to_do_is_refused(write_rows: WriteRows, extra: dict[str, object]) -> None:
    found, reasons, left_out = read(write_rows({"input": "long", "output": "short", **extra}))
    assert (found, reasons, left_out) == ([], [_unused(*extra)], set())


def test_harmless_columns_are_left_out_and_named(write_rows: WriteRows) -> None:
    row = {"question": "a", "answer": "b", "ID": 7, "url": "x", "language": "ja", "score": 0.5, "source": "", "task": 3}
    messages = {
        "messages": [{**U, "timestamp": 1}, {**A, "content": [{"type": "text", "text": "b", "cache_control": "x"}]}]
    }
    assert read(write_rows(row))[1:] == ([], {"ID", "url", "language", "score", "task"})
    assert read(write_rows(messages))[1:] == ([], {"timestamp", "cache_control"})
    assert read(write_rows({**row, "answer": "b"}), "ID=ignore", "task=ignore")[2] == {"url", "language", "score"}


def test_the_names_of_harmless_columns_are_printed_once_per_data_set_also_from_the_cache(
    write_rows: WriteRows, phi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr(progress, "say", said.append)
    path = write_rows(*[{"question": f"q{number}", "answer": "a", "url": "x", "id": number} for number in range(3)])
    for _ in range(2):
        said.clear()
        prepare(path, phi, cache_dir=tmp_path / "cache")
        assert said == [phrase("dataset.left_out", names="id, url")]
    said.clear()
    prepare(write_rows({"question": "q", "answer": "a"}), phi)
    assert said == []


@pytest.mark.parametrize("name", ["Unnamed: 0", ""])
def test_the_column_in_which_pandas_numbers_its_rows_is_harmless(write_rows: WriteRows, name: str) -> None:
    assert read(write_rows({name: 0, "question": "a", "answer": "b"}))[1:] == ([], {name})
    assert read(write_rows({name: "12", "question": "a", "answer": "b"}))[1:] == ([], {name})
    assert read(write_rows({name: "words", "question": "a", "answer": "b"}))[1:] == ([_unused(name)], set())


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("question, en", '"question, en"'),
        (" question", '" question"'),
        ('the "question"', '"the ""question"""'),
        ("", '""'),
        ("a=b", "a=b"),
        ("a=b", '"a=b"'),
    ],
)
def test_a_name_in_quotes_may_have_any_characters(write_rows: WriteRows, name: str, written: str) -> None:
    given = f"{written}=question,notes=ignore"
    columns = resolve(TrainConfig, environment={}, flags={"base_model": "x", "columns": [given]}).columns
    assert len(columns) == 2
    (chat,), reasons, _ = read(write_rows({name: "問い", "answer": "答え", "notes": "x"}), *columns)
    assert (chat.messages, reasons) == ([U, A], [])  # type: ignore[union-attr]


def test_a_name_may_be_given_once_with_and_without_quotes() -> None:
    with pytest.raises(UsageError) as caught:
        Columns(["a=question", '"a"=answer'], KNOWN_KEYS)
    assert caught.value.key == "columns.malformed"


def test_the_nearest_known_name_is_a_sentence_of_its_own() -> None:
    with pytest.raises(UsageError) as caught:
        Columns(["a=Output"], KNOWN_KEYS)
    assert caught.value.key == "columns.unknown"
    assert caught.value.why == "did you mean 'output'?"


def _unused(column: str, label: str = "") -> str:
    return phrase("formats.unused_keys", label=label, keys=repr(column))
