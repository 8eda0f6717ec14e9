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

from aegis.cli.checked_settings import train_settings
from aegis.data.dataset import prepare
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source, refuse_absent
from aegis.errors import DataError, UsageError
from aegis.limits import ROW_BYTES
from aegis.messages import phrase
from aegis.stages import init_config
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


def test_a_folder_written_by_save_to_disk_is_read(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "split"))
    assert values(tmp_path / "one") == ROWS
    assert values(tmp_path / "split") == ROWS
    with pytest.raises(UsageError, match="no split 'validation'"):
        open_source(tmp_path / "split", split="validation")


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


def test_folders_within_a_folder_are_named_as_not_read(tmp_path: Path, reporter: Recorder) -> None:
    for name in ("data.jsonl", "sub/more.jsonl", ".hidden/no.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    told = phrase("sources.folders_not_read", path=tmp_path, names="sub", pattern=tmp_path / "**" / "*.jsonl")
    assert values(tmp_path) == ROWS
    assert told in reporter.messages
    reporter.messages.clear()
    assert values(f"{tmp_path}/*") == ROWS
    assert [text for text in reporter.messages if "sub" in text] == [told.replace(str(tmp_path), f"{tmp_path}/*", 1)]
    reporter.messages.clear()
    assert values(f"{tmp_path}/**/*.jsonl") == ROWS * 2
    assert reporter.messages == []


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    monkeypatch.chdir(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: open_source(name),
        lambda: open_source(f"data.jsonl,{name},data.jsonl"),
        lambda: refuse_absent(name),
        lambda: train_settings("demo", None, {"dataset": name}),
        lambda: train_settings("demo", None, {"keep_data": name}),
        lambda: init_config.check("demo", name),
    ]
    for attempt in attempts:
        with pytest.raises(UsageError) as caught:
            attempt()
        assert caught.value.key == "sources.no_name"
