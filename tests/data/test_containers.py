"""Tests that rows are read from every supported container, and that a message names any other."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from aegis.data.dataset import prepare
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source
from aegis.errors import DataError, UsageError
from aegis.limits import ROW_BYTES
from tests.conftest import Recorder

ROWS: list[dict[str, Any]] = [{"question": f"Hi {n}?", "answer": f"行\n{n}"} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def values(source: str | Path) -> list[object]:
    rejects = Rejects(str(source))
    opened = open_source(source)
    found = [row.value for row in opened.rows(rejects)]
    rejects.check()
    return found


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return bytes(sink.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd}


@pytest.mark.parametrize("kind", PACK)
def test_packed_lines_are_read_and_counted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.jsonl.{kind}"
    path.write_bytes(PACK[kind](b"\xef\xbb\xbf" + LINES))
    assert values(path) == ROWS
    source = open_source(path)
    wheres = [row.where for row in source.rows(Rejects("x"))]
    assert wheres == [f"{path}:{number}" for number in range(1, 6)]
    assert 0 < source.position <= source.total


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("damage", ["cut", "no archive"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / f"data.jsonl.{kind}"
    packed = PACK[kind](LINES * 5000)
    path.write_bytes(packed[: len(packed) // 2] if damage == "cut" else LINES)
    with pytest.raises(DataError, match="cannot be unpacked"):
        values(path)


@pytest.mark.parametrize("kind", PACK)
def test_a_packed_line_without_end_is_not_held_in_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.jsonl.{kind}"
    path.write_bytes(PACK[kind](b"x" * (8 * ROW_BYTES)))
    tracemalloc.start()
    with pytest.raises(DataError, match="longer than"):
        values(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * ROW_BYTES


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.jsonl.gz"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.0", "data": ROWS}, indent=4),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        LINES.decode(),
    ],
    ids=["array", "printed array", "holder", "printed holder", "printed rows", "lines"],
)
def test_common_layouts_of_json_files_are_read(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert values(path) == ROWS


def test_one_line_that_is_too_long_for_a_row_may_be_an_array(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    rows = [{"text": "x" * ROW_BYTES}, {"text": "y"}]
    for document in (rows, {"rows": rows}):
        path.write_text(json.dumps(document), encoding="utf-8")
        assert values(path) == rows


@pytest.mark.parametrize(
    "text",
    ['{"messages": [{"role": "user", "content": "a"}]}', '{"data": ["a", "b"]}', '{"data": [{"a": 1}], "b": [2]}'],
)
def test_a_row_that_only_looks_like_a_holder_is_a_row(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    assert values(path) == [json.loads(text)]


def test_a_broken_document_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{\n  "a": 1\n}\n{\n  "a" 2\n}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"{path}:5: broken JSON at column 7"):
        values(path)
    path.write_text('{"a": 1},\n{"a": 2},\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"{path}:1: broken JSON at column 9: Extra data"):
        values(path)


def test_tab_separated_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("question\tanswer\nHi, you?\tはい\n", encoding="utf-8")
    assert values(path) == [{"question": "Hi, you?", "answer": "はい"}]


def test_several_files_are_one_source(tmp_path: Path, reporter: Recorder) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "b.jsonl").write_bytes(LINES)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (folder / "README.md").write_text("words", encoding="utf-8")
    (folder / ".hidden.jsonl").write_text("{", encoding="utf-8")
    for source in (folder, f"{folder}/*.jsonl*", f"{folder}/b.jsonl,{folder}/a.jsonl.gz"):
        assert values(str(source)) == ROWS * 2
    assert any("2 files are read as one dataset: a.jsonl.gz, b.jsonl" in text for text in reporter.messages)
    assert any("not read, because their type is not supported: README.md" in text for text in reporter.messages)
    one, other = open_source(folder), open_source(f"{folder}/*.jsonl")
    assert one.sha256() != other.sha256()
    rows = list(one.rows(Rejects("x")))
    assert rows[0].where == f"{folder / 'a.jsonl.gz'}:1"
    assert one.position == one.total
    with pytest.raises(UsageError, match="there is no file"):
        open_source(f"{folder}/*.csv")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ({"data": []}, "the list 'data', in which rows could be, is empty"),
        ({"version": "1", "rows": [], "meta": {"a": 1}}, "the list 'rows', in which rows could be, is empty"),
        ({"version": 1, "data": ROWS, "meta": {"a": 1}}, "the rows seem to be in the list 'data'"),
        ({"items": ROWS, "tags": ["a"]}, "the rows seem to be in the list 'items'"),
    ],
)
def test_a_document_that_is_no_row_is_told_where_its_rows_are(
    phi: Any, tmp_path: Path, document: dict[str, Any], shown: str, indent: int | None
) -> None:
    """Other names for its columns would not help."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare(path, phi)
    assert shown in str(caught.value)
    assert "--columns" not in str(caught.value)


def test_no_advice_would_leave_out_all_rows(phi: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"frage": "a"}\n{"frage": "b"}\n', encoding="utf-8")
    for skip_bad in (0, 2):
        with pytest.raises(DataError, match="none of the 2 rows") as caught:
            prepare(path, phi, skip_bad=skip_bad)
        assert "--skip-bad" not in str(caught.value)
        assert "--columns" in str(caught.value)


def test_a_reason_that_all_rows_have_is_named_once(phi: Any, tmp_path: Path) -> None:
    """The control has two reasons; a single row is spoken of as one."""

    def why(*rows: str) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        with pytest.raises(DataError) as caught:
            prepare(path, phi)
        return str(caught.value)

    same = why(*['{"frage": "a"}'] * 20)
    assert (same.count("data.jsonl:"), same.count("'frage'")) == (1, 1)
    assert "19 more, for the same reason" in same
    mixed = why(*['{"frage": "a"}', '{"wer": "b"}'] * 10)
    assert mixed.count("data.jsonl:") == 5
    assert "15 more" in mixed
    assert "the only row of" in why('{"frage": "a"}')


@pytest.mark.parametrize(
    ("rows", "of_columns"),
    [
        (['{"frage": "a"}'], True),
        (['{"question": "a", "answer": "b", "notes": "c"}'], True),
        (['{"messages": [{"who": "user", "content": "a"}]}'], True),
        (['{"frage": "a"}', '{"wer": "a"}'], True),
        (['{"text": "a'], False),
        (['{"text": "a\\u0000"}'] * 2, False),
        (['{"messages": []}'], False),
        (['{"messages": [{"role": "assistant", "content": "a"}]}'], False),
        (['{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}'], False),
        (['{"question": "<|end|>", "answer": "b"}'], False),
    ],
)
def test_columns_are_spoken_of_where_they_are_the_cause(
    phi: Any, tmp_path: Path, rows: list[str], of_columns: bool
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare(path, phi)
    assert caught.value.key == ("rejects.only" if len(rows) == 1 else "rejects.all")
    assert ("--columns" in caught.value.fix) == of_columns
