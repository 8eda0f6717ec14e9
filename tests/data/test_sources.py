"""Tests that files are read row by row, and that a fault is reported with its position."""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.data.rejects import Rejects
from aegis.data.sources import open_source, refuse_absent
from aegis.errors import DataError, EnvironmentFault, UsageError
from aegis.limits import ROW_BYTES

WriteRows = Callable[..., Path]
JAPANESE = '{"text": "今日は天気がよいので、散歩に行きました。"}\n'


def read(path: Path, skip_bad: int = 0) -> list[tuple[str, object]]:
    rejects = Rejects(str(path), skip_bad)
    rows = [(row.where.removeprefix(str(path)), row.value) for row in open_source(path).rows(rejects)]
    rejects.check()
    return rows


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_json_lines_carry_their_line_numbers(write_rows: WriteRows) -> None:
    assert read(write_rows({"a": 1}, "", {"a": 2})) == [(":1", {"a": 1}), (":3", {"a": 2})]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_byte_order_mark_and_other_line_ends_are_accepted(tmp_path: Path, start: bytes, end: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(start + '{"a": "あ"}'.encode() + (end or b"\n") + '{"a": "い"}'.encode() + end)
    assert [value for _, value in read(path)] == [{"a": "あ"}, {"a": "い"}]


def test_broken_json_is_named_by_line_and_column(write_rows: WriteRows) -> None:
    rows: list[object] = [{"text": str(i)} for i in range(50)]
    rows[36] = '{"text": "half'
    message = refusal(write_rows(*rows))
    assert "data.jsonl:37: broken JSON at column 10: Unterminated string" in message
    assert "--skip-bad 1" in message


def test_five_bad_rows_are_shown_and_all_are_counted(write_rows: WriteRows) -> None:
    message = refusal(write_rows(*["{"] * 12, {"text": "good"}))
    assert message.startswith("12 rows")
    assert [f":{line}: " in message for line in range(1, 7)] == [True] * 5 + [False]
    assert "and 7 more" in message


def test_tolerated_rows_are_kept_with_their_reasons(write_rows: WriteRows) -> None:
    rejects = Rejects("x", skip_bad=7)
    rows = list(open_source(write_rows(*["{"] * 7, {"text": "good"})).rows(rejects))
    rejects.check()
    assert [row.value for row in rows] == [{"text": "good"}]
    assert len(rejects.listed) == 7


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a\x00b"}', "broken JSON at column 12: Invalid control character"),
        (b'{"text": "ok"}' + b" " * 10_000_000, f"longer than {ROW_BYTES:,} bytes"),
        (b'{"n": ' + b"9" * 5000 + b"}", "JSON with a number of more than 4,300 digits"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"text": "\xe3\x81"}', "not UTF-8 at byte 11 of the line"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8 at byte 11 of the line"),
    ],
    ids=["nul", "10 MB", "digits", "brackets", "cut character", "raw surrogate"],
)
def test_a_bad_line_costs_only_itself(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    good = '{"text": "よい"}\n'.encode()
    path.write_bytes(good + line + b"\n" + good)
    assert reason in refusal(path)
    assert [where for where, _ in read(path, skip_bad=1)] == [":1", ":3"]


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"x" * (8 * ROW_BYTES))
    tracemalloc.start()
    refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * ROW_BYTES


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt", ".csv"])
@pytest.mark.parametrize(
    ("encoding", "name"),
    [("cp932", "cp932 (Shift_JIS)"), ("euc_jp", "EUC-JP"), ("utf-16", "UTF-16"), ("utf-32", "UTF-32")],
)
def test_another_encoding_is_named_and_the_printed_command_converts_it(
    tmp_path: Path, suffix: str, encoding: str, name: str
) -> None:
    path = tmp_path / f"日本 語{suffix}"
    path.write_bytes(('{"text": "ascii first"}\n' + JAPANESE * 3).encode(encoding))
    message = refusal(path)
    assert f"looks like {name}" in message
    command = shlex.split(message.splitlines()[-1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True)
    converted = path.with_name(f"日本 語.utf8{suffix}")
    assert converted.read_text(encoding="utf-8").endswith(JAPANESE)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt", ".csv"])
def test_a_file_of_zero_bytes_is_damaged_and_in_no_encoding(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(bytes(5000))
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.key == "lines.nul"


def test_a_lost_part_of_a_file_is_called_damaged_where_it_is(tmp_path: Path) -> None:
    rows, path = b'{"text": "a"}\n{"text": "b"}\n', tmp_path / "data.jsonl"
    path.write_bytes(rows + b'{"text": "' + bytes(5000))
    assert f"{path}:3: NUL bytes" in refusal(path)
    assert len(read(path, skip_bad=1)) == 2
    path = path.with_suffix(".json")
    path.write_bytes(b'[\n{"text": "a"},\n{"text": "' + bytes(5000))
    assert f"{path}:3 holds NUL bytes" in refusal(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_an_encoding_without_its_mark_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(JAPANESE.encode(encoding))
    assert f"looks like {encoding.upper()}" in refusal(path)


def test_a_json_file_may_be_one_array(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}], indent=2), encoding="utf-8")
    assert read(path) == [(":item 1", {"a": 1}), (":item 2", {"a": 2})]
    path.write_text('[\n {"a": 1},\n {"a" 2}\n]', encoding="utf-8")
    assert f"{path}:3: broken JSON" in refusal(path)


def test_a_json_file_may_be_json_lines(write_rows: WriteRows) -> None:
    assert read(write_rows({"a": 1}, {"a": 2}, name="data.json")) == [(":1", {"a": 1}), (":2", {"a": 2})]


def test_text_documents_are_separated_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes("\r\n一\r\n二\r\n\r\n \n\n三\n".encode())
    assert read(path) == [(":2", {"text": "一\n二"}), (":7", {"text": "三"})]


def test_a_text_document_with_a_bad_line_is_left_out_completely(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes("あ\n\n一\n".encode() + b"\xff\n" + "二\n\n三\n".encode())
    assert read(path, skip_bad=1) == [(":1", {"text": "あ"}), (":7", {"text": "三"})]


def test_csv_fields_are_strings_and_may_have_newlines(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\nNA,"1\n2"\nい,3\n', encoding="utf-8")
    assert [value for _, value in read(path)] == [
        {"prompt": "NA", "completion": "1\n2"},
        {"prompt": "い", "completion": "3"},
    ]
    path.write_text("prompt,completion\na,b,c\n", encoding="utf-8")
    assert "data.csv:2: more fields than the header has columns: 3, not 2" in refusal(path)


def test_a_parquet_value_that_is_no_text_never_becomes_one(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "data.parquet"
    row = {"text": b"bytes", "day": datetime.date(2026, 1, 2), "half": 0.5, "pairs": [("a", 1)], "none": None}
    types = {"pairs": pyarrow.map_(pyarrow.string(), pyarrow.int64())}
    columns = {name: pyarrow.array([value], types.get(name)) for name, value in row.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    ((_, found),) = read(path)
    assert found == {"text": {"bytes": None}, "day": {"date": None}, "half": 0.5, "pairs": [["a", 1]], "none": None}


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "data.parquet"
    rows = [{"messages": [{"role": "user", "content": "あ"}]}, {"messages": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read(path) == [(":row 1", rows[0]), (":row 2", rows[1])]
    path.write_bytes(b"PAR1 no")
    assert "not a readable Parquet file" in refusal(path)


@pytest.mark.parametrize("source", ["missing.jsonl", "data/missing.jsonl", "missing", "a/b/c", "../x", "x" * 300])
def test_a_missing_file_is_a_usage_error(source: str) -> None:
    with pytest.raises(UsageError, match="there is no file") as caught:
        open_source(source)
    assert caught.value.exit_code == 2


def test_a_list_of_files_may_be_longer_than_a_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"rows-{number:03}.jsonl" for number in range(40)]
    for name in names:
        Path(name).write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    refuse_absent(",".join(names))
    rows = open_source(",".join(names)).rows(Rejects("rows"))
    assert [row.value["text"] for row in rows] == names


def test_a_folder_without_data_and_an_unknown_kind_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path)
    assert caught.value.key == "sources.empty_folder"
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path / "data.xlsx")
    assert caught.value.key == "sources.unknown_suffix"
    (tmp_path / "data.parquet.zst").touch()
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path / "data.parquet.zst")
    assert caught.value.key == "sources.unknown_suffix"


def test_an_unreachable_hub_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match="nobody/nothing could not be fetched"):
        open_source("nobody/nothing")


def test_the_position_reaches_the_total(write_rows: WriteRows) -> None:
    source = open_source(write_rows({"a": 1}, {"a": 2}))
    assert list(source.rows(Rejects("x"))) != []
    assert source.position == source.total > 0
