"""Tests of CSV and TSV, of names that are there twice, and of lines that end in a carriage return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.data.formats import records
from aegis.data.records import Chat, Plain
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source
from aegis.errors import DataError
from aegis.messages import phrase

Values = list[object]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read(path: Path) -> tuple[Values, list[str]]:
    """Return the values of the rows, and "line: reason" of the bad ones."""
    rejects = Rejects("x", skip_bad=100)
    values = [row.value for row in open_source(path).rows(rejects)]
    return values, [f"{where.removeprefix(f'{path}:')}: {reason}" for where, reason in rejects.listed]


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path)
    assert (caught.value.exit_code, bool(caught.value.fix)) == (4, True)
    return caught.value


def test_a_table_with_a_column_twice_is_refused_by_its_name(written: Callable[..., Path]) -> None:
    error = refusal(written("instruction,output,output\na,b,c\n"))
    assert (error.key, error.values["name"]) == ("files.repeated_column", "output")


def test_names_that_differ_in_white_space_alone_stay_two_names(written: Callable[..., Path]) -> None:
    assert read(written("a, a\n1,2\n")) == ([{"a": "1", " a": "2"}], [])


def test_a_parquet_file_with_a_column_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "data.parquet"
    columns = [pyarrow.array([text]) for text in "abc"]
    pyarrow.parquet.write_table(pyarrow.table(columns, ["instruction", "output", "output"]), path)
    error = refusal(path)
    assert (error.key, error.values["name"]) == ("files.repeated_column", "output")


@pytest.mark.parametrize(
    "row",
    [
        '{"question": "a", "answer": "b", "answer": "c"}',
        '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "answer": "c"}]}',
    ],
)
def test_a_json_object_with_a_key_twice_is_refused_by_the_key(written: Callable[..., Path], row: str) -> None:
    reason = phrase("files.repeated_key", key="answer" if "question" in row else "content")
    assert read(written(f'{{"text": "x"}}\n{row}\n', "data.jsonl")) == ([{"text": "x"}], [f"2: {reason}"])
    error = refusal(written(f"[\n{row}]", "data.json"))
    assert (error.key, error.values["lineno"], error.values["error"]) == ("files.broken_json", 2, reason)


def test_a_key_twice_is_refused_in_json_within_a_text_too(written: Callable[..., Path]) -> None:
    messages = r"[{\"role\": \"user\", \"content\": \"a\", \"content\": \"b\"}]"
    rejects = Rejects("x", skip_bad=1)
    assert list(records(open_source(written(f'{{"messages": "{messages}"}}\n', "data.jsonl")), rejects)) == []
    assert phrase("files.repeated_key", key="content") in rejects.listed[0][1]


def test_white_space_around_the_names_in_a_header_does_not_count(written: Callable[..., Path]) -> None:
    assert read(written("instruction, output\na,b\n")) == ([{"instruction": "a", "output": "b"}], [])
    assert read(written("a,\u00a0b ,\na,b,\n")) == ([{"a": "a", "b": "b", "": ""}], [])


def test_a_table_that_pandas_wrote_is_read(written: Callable[..., Path]) -> None:
    rejects, left_out = Rejects("x"), set[str]()
    path = written(",instruction,output\n0,a,b\n1,c,d\n")
    chats = [record for record in records(open_source(path), rejects, (), left_out) if isinstance(record, Chat)]
    assert [message["content"] for chat in chats for message in chat.messages] == ["a", "b", "c", "d"]
    assert left_out == {""}


def test_only_one_column_without_a_name_may_have_a_value(written: Callable[..., Path]) -> None:
    path = written("a,b,,\n1,2,,\n3,4,,5\n6,7,8,9\n")
    assert read(path) == (
        [{"a": "1", "b": "2", "": ""}, {"a": "3", "b": "4", "": "5"}],
        [f"4: {phrase('files.unnamed_columns')}"],
    )


def test_a_line_with_fewer_or_more_fields_than_the_header_says_so(written: Callable[..., Path]) -> None:
    assert read(written("a,b,c\n1,2\n1,2,3\n1,2,3,4\n")) == (
        [{"a": "1", "b": "2", "c": "3"}],
        [
            f"2: {phrase('files.too_few_fields', found=2, columns=3)}",
            f"4: {phrase('files.too_many_fields', found=4, columns=3)}",
        ],
    )


@pytest.mark.parametrize(
    ("content", "name", "given"),
    [
        ("instruction;output\na;b\n", "data.csv", "';'"),
        ("instruction\toutput\na\tb\n", "data.csv", "TAB"),
        ("instruction,output\na,b\n", "data.tsv", "','"),
    ],
)
def test_another_separator_is_named_with_what_to_do(
    written: Callable[..., Path], content: str, name: str, given: str
) -> None:
    error = refusal(written(content, name))
    assert (error.key, error.values["given"]) == ("files.other_separator", given)


def test_a_single_column_is_no_sign_of_another_separator(written: Callable[..., Path]) -> None:
    assert read(written("text\na;b\n")) == ([{"text": "a;b"}], [])


@pytest.mark.parametrize(
    ("content", "line", "key"),
    [
        ('a,b\n1,2\n3,"4\n5,6\n', 3, "files.csv_open_quote"),
        ('a,b\n1,2\n3,"4', 3, "files.csv_open_quote"),
        ('a,b\n1,2\n"3"x,4\n', 3, "files.csv_after_quote"),
        ("a,b\n1,2\n3\r3,4\n", 3, "files.csv_line_end"),
    ],
)
def test_a_broken_table_is_refused_with_the_line_on_which_the_row_begins(
    written: Callable[..., Path], content: str, line: int, key: str
) -> None:
    error = refusal(written(content))
    assert (error.key, error.values["line_num"]) == ("files.broken_csv", line)
    assert error.values["error"] == phrase(key)


def test_a_row_with_a_line_that_cannot_be_read_is_not_used(written: Callable[..., Path]) -> None:
    values, bad = read(written('a,b\n1,"é\n'.encode() + b"\xff\n" + b'x"\n3,4\n'))
    assert values == [{"a": "3", "b": "4"}]
    assert [line.partition(":")[0] for line in bad] == ["3"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_may_end_in_a_carriage_return_alone(written: Callable[..., Path], mark: bytes) -> None:
    assert read(written(mark + 'a,b\r1,"2\r3"\rあ,4\r'.encode())) == (
        [{"a": "1", "b": "2\n3"}, {"a": "あ", "b": "4"}],
        [],
    )
    assert read(written(mark + b'{"a": 1}\r{"a": 2}', "data.jsonl"))[0] == [{"a": 1}, {"a": 2}]
    assert read(written(mark + b"[\r{},\r{}]", "data.json"))[0] == [{}, {}]
    assert read(written(mark + b"one\rtwo\r\rthree", "data.txt"))[0] == [{"text": "one\ntwo"}, {"text": "three"}]


def test_a_carriage_return_within_a_line_of_a_text_ends_a_line(written: Callable[..., Path]) -> None:
    rows = list(records(open_source(written(b"one\rtwo\r\n\r\nthree\n", "data.txt")), Rejects("x")))
    assert [row.text for row in rows if isinstance(row, Plain)] == ["one\ntwo", "three"]


def test_a_number_that_is_too_long_is_called_that(written: Callable[..., Path]) -> None:
    number = "9" * 5000
    _, (reason,) = read(written(f'{{"n": {number}}}\n', "data.jsonl"))
    assert reason == f"1: {phrase('files.long_number', digits=4300)}"
    error = refusal(written(f'[{{"a": 1}},\n{{"n": {number}}}]', "data.json"))
    assert (error.key, error.values["lineno"]) == ("files.broken_json", 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"a" 1}',
        '{"a": 1 "b"}',
        "{a: 1}",
        '{"a": 1,}',
        '{"a": "b',
        '{"a": "\t"}',
        '{"a": "\\x"}',
        '{"a": "\\u12"}',
        "1 2",
        "[1,]",
    ],
)
def test_what_is_wrong_with_broken_json_is_said_in_the_readers_language(
    written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("AEGIS_LANG", "ja")
    _, reasons = read(written(f'{{"text": "x"}}\n{text or "-"}\n', "data.jsonl"))
    assert len(reasons) == 1
    assert not any(word in reasons[0] for word in ("xpect", "xtra", "nvalid", "llegal", "nterminated"))
