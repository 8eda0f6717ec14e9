"""Tests of the path from a file to windows: split, report and cache."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from aegis.data.dataset import Prepared, prepare
from aegis.data.files import FileSource
from aegis.data.hub_source import HubSource
from aegis.data.packing import Windows
from aegis.data.rejects import Rejects
from aegis.errors import DataError, EnvironmentFault
from tests.conftest import Recorder

WriteRows = Callable[..., Path]


def row(number: int | str, answer: str = "Hello") -> dict[str, str]:
    return {"prompt": f"Hi {number}", "completion": f"{answer} {number}"}


def as_messages(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def documents(tokenizer: Any, windows: Windows | None) -> list[str]:
    """Return the text of every document in the windows."""
    if windows is None:
        return []
    return [tokenizer.decode(piece) for piece in windows.pieces()]


def arrays(prepared: Prepared) -> list[bytes]:
    parts = [prepared.train, *([prepared.heldout] if prepared.heldout else [])]
    kept = [getattr(part, field.name) for part in parts for field in dataclasses.fields(part)[3:]]
    return [array.tobytes() for array in [*kept, *(part.tokens.read(0, len(part.tokens)) for part in parts)]]


def test_the_numbers_of_the_report_add_up(phi: Any, write_rows: WriteRows, reporter: Recorder) -> None:
    long_answer = row("long", "Hello there, how are you today? " * 8)
    long_question = {"prompt": "today? " * 60, "completion": "Hello"}
    path = write_rows(*(row(i) for i in range(20)), long_answer, long_question, {"prompt": "x"})
    prepared = prepare(path, phi, max_length=48, skip_bad=1)
    report = prepared.report
    assert (report.rows, report.train_rows, report.heldout_rows) == (21, 21, 0)
    assert (report.truncated, report.dropped, report.windows) == (2, 1, len(prepared.train))
    assert report.skipped == [(f"{path}:23", "missing key 'completion'")]
    assert any("data.jsonl:23: missing key 'completion'" in text for text in reporter.warned)
    longest = len(phi.apply_chat_template(as_messages(long_question), return_dict=False))
    other = len(phi.apply_chat_template(as_messages(long_answer), return_dict=False))
    assert report.cut_tokens == longest + other - 2 * 48
    assert report.fitting_length == other  # 21 of 22 chats fit into it
    assert any("2 of 22 rows are longer" in text and f"--max-length {other}" in text for text in reporter.warned)
    assert any("1 of 22 rows are left out" in text for text in reporter.warned)
    assert report.content_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    labels = prepared.train.batch(range(len(prepared.train))).labels
    assert (labels != -100).sum() == report.trained_tokens
    assert report.pad_token_id == phi.pad_token_id
    assert prepared.heldout is None


def test_the_report_of_cut_rows_is_repeated_from_the_cache(
    phi: Any, write_rows: WriteRows, reporter: Recorder, tmp_path: Path
) -> None:
    path = write_rows(*(row(i, "Hello there, how are you? " * 9) for i in range(20)))
    reports = [prepare(path, phi, max_length=32, cache_dir=tmp_path / "cache").report for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].truncated == 20
    assert len(reporter.warned) == 2
    assert reporter.warned[0] == reporter.warned[1]
    reporter.warned.clear()
    prepare(path, phi, max_length=reports[0].fitting_length)
    assert reporter.warned == []


def test_columns_and_folded_system_texts_are_part_of_the_cache_key(
    phi: Any, byte_level: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    path = write_rows(*({"q": f"Hi {i}", "a": f"Hello {i}", "note": "x"} for i in range(9)))
    named = ["q=question", "a=answer", "note=ignore"]
    settings: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    assert prepare(path, phi, columns=named, **settings).report.rows == 9
    assert prepare(path, phi, columns=[*named[:2], "note=system"], **settings).report.rows == 9
    prepare(path, phi, columns=named, fold_system=True, **settings)
    assert len(list((tmp_path / "cache").glob("*.windows"))) == 3
    with pytest.raises(DataError, match="'note' would be left out"):
        prepare(path, phi, columns=named[:2], **settings)


def test_the_same_input_gives_the_same_windows(phi: Any, write_rows: WriteRows) -> None:
    path = write_rows(*(row(i) for i in range(40)))
    first, again, other = (prepare(path, phi, max_length=64, seed=s, heldout_rows=2) for s in (1, 1, 2))
    assert arrays(first) == arrays(again)
    assert documents(phi, first.heldout) != documents(phi, other.heldout)


def test_heldout_rows_and_their_duplicates_are_not_trained_on(phi: Any, write_rows: WriteRows) -> None:
    rows = [row(i) for i in range(30)]
    prepared = prepare(write_rows(*rows, *rows, *rows), phi, max_length=64, heldout_rows=3)
    train, heldout = documents(phi, prepared.train), documents(phi, prepared.heldout)
    assert (len(train), len(heldout), len(set(heldout))) == (81, 3, 3)
    assert not set(train) & set(heldout)
    assert prepared.report.duplicates_of_heldout == 6


def test_the_pieces_of_a_document_stay_together(phi: Any, write_rows: WriteRows) -> None:
    """Documents of one window to four: each is held out whole or trained on whole."""
    names = [str(number) for number in range(10, 40)]
    rows = [{"text": " ".join([name] * 10 * (1 + number % 4))} for number, name in enumerate(names)]
    prepared = prepare(write_rows(*rows), phi, max_length=16, heldout_rows=3)
    pieces = [documents(phi, windows) for windows in (prepared.train, prepared.heldout)]
    train, heldout = ({name for name in names if any(name in piece for piece in part)} for part in pieces)
    assert len(heldout) == 3
    assert train == set(names) - heldout
    assert len(pieces[0]) + len(pieces[1]) > len(rows)


@pytest.mark.parametrize(("count", "heldout"), [(1, 0), (9, 0), (10, 1), (25, 2), (100, 5)])
def test_at_most_a_tenth_is_held_out(phi: Any, write_rows: WriteRows, count: int, heldout: int) -> None:
    report = prepare(write_rows(*(row(i) for i in range(count))), phi, heldout_rows=5).report
    assert (report.heldout_rows, report.train_rows) == (heldout, count - heldout)


def test_the_choice_of_heldout_rows_does_not_depend_on_the_order(phi: Any, write_rows: WriteRows) -> None:
    rows = [row(i) for i in range(30)]
    one = prepare(write_rows(*rows), phi, heldout_rows=3)
    other = prepare(write_rows(*reversed(rows)), phi, heldout_rows=3)
    assert sorted(documents(phi, one.heldout)) == sorted(documents(phi, other.heldout))


def test_bad_rows_are_refused_together(phi: Any, write_rows: WriteRows) -> None:
    """Those of the file, of the shape and of the template are one list."""
    path = write_rows(row(0), "{", {"prompt": ""}, {"prompt": "Hi", "completion": "<|end|>"})
    with pytest.raises(DataError, match=r"^3 rows of .* cannot be used") as caught:
        prepare(path, phi, skip_bad=2)
    assert [f"jsonl:{line}: " in str(caught.value) for line in (1, 2, 3, 4)] == [False, True, True, True]
    assert prepare(path, phi, skip_bad=3).report.rows == 1


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.txt", "data.csv"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_dataset_is_refused(phi: Any, write_rows: WriteRows, name: str, content: str) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        prepare(write_rows(content, name=name), phi)


def test_an_empty_array_is_refused(phi: Any, write_rows: WriteRows) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        prepare(write_rows("[]", name="data.json"), phi)


def test_data_without_tokens_to_train_on_is_refused(phi: Any, write_rows: WriteRows) -> None:
    with pytest.raises(DataError, match="no token") as caught:
        prepare(write_rows({"prompt": "today? " * 60, "completion": "Hello"}), phi, max_length=16)
    assert "--max-length" in caught.value.fix


def test_cached_data_equals_the_prepared_data(phi: Any, write_rows: WriteRows, tmp_path: Path) -> None:
    path = write_rows(*(row(i) for i in range(40)), "{")
    settings: dict[str, Any] = {"heldout_rows": 2, "skip_bad": 1, "cache_dir": tmp_path / "cache"}
    fresh = prepare(path, phi, **settings)
    (kept,) = (tmp_path / "cache").glob("*.windows")
    stamp = kept.stat().st_mtime_ns
    again = prepare(path, phi, **settings)
    assert arrays(again) == arrays(fresh)
    assert again.report == fresh.report
    assert kept.stat().st_mtime_ns == stamp


def test_the_cache_key_covers_everything_the_result_depends_on(
    phi: Any, byte_level: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    def entries(tokenizer: Any, path: Path, **settings: Any) -> int:
        prepare(path, tokenizer, cache_dir=tmp_path / "cache", **settings)
        return len(list((tmp_path / "cache").glob("*.windows")))

    path = write_rows(*(row(i) for i in range(20)))
    assert entries(phi, path) == 1
    assert entries(phi, path, seed=1) == 2
    assert entries(phi, path, max_length=64) == 3
    assert entries(phi, path, packing=False) == 4
    assert entries(phi, path, heldout_rows=1) == 5
    assert entries(byte_level(None), path) == 6
    assert entries(byte_level("{% for m in messages %}{{ m.content }}<eos>{% endfor %}"), path) == 7
    assert entries(phi, write_rows(row(1), name="other.jsonl")) == 8
    assert entries(phi, path.rename(path.with_name("moved.jsonl"))) == 8


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cache_is_prepared_again(phi: Any, write_rows: WriteRows, tmp_path: Path, damage: str) -> None:
    path = write_rows(*(row(i) for i in range(20)))
    fresh = prepare(path, phi, cache_dir=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("*.windows")
    content = bytearray(kept.read_bytes())
    content[-9] ^= 1
    kept.write_bytes({"flip": bytes(content), "cut": bytes(content[:-5]), "empty": b""}[damage])
    again = prepare(path, phi, cache_dir=tmp_path / "cache")
    assert arrays(again) == arrays(fresh)
    assert kept.stat().st_size == len(content)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv", "data.parquet", "data.jsonl.gz"])
@pytest.mark.parametrize(("other", "back"), [(True, False), (True, True), (False, False)])
def test_data_that_changes_while_it_is_read_is_refused_and_never_cached(
    phi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: bool, back: bool
) -> None:
    """Also if it is changed back before the end. Written over with the same rows it is the same data."""
    path, cache = tmp_path / name, tmp_path / "cache"

    def write(answer: str) -> None:
        rows = [row(number, answer) for number in range(400)]
        if path.suffix == ".parquet":
            pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            lines = (f"{one['prompt']},{one['completion']}" for one in rows)
            path.write_text("\n".join(("prompt,completion", *lines)))
        elif path.suffix == ".gz":
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))
        else:
            path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))

    rows_of = FileSource.rows

    def rows_after_it_was_written(source: FileSource, rejects: Rejects) -> Iterator[Any]:
        write("Bye" if other else "Hello")
        for number, one in enumerate(rows_of(source, rejects)):
            if back and number == 300:
                write("Hello")
            yield one

    write("Hello")
    monkeypatch.setattr(FileSource, "rows", rows_after_it_was_written)
    if other:
        with pytest.raises(DataError) as caught:
            prepare(path, phi, cache_dir=cache)
        assert caught.value.key == "dataset.changed"
        monkeypatch.undo()
        write("Hello")
        assert list(cache.glob("*.windows")) == []
    else:
        assert prepare(path, phi, cache_dir=cache).report.rows == 400
    assert "Bye 1" not in "".join(documents(phi, prepare(path, phi, cache_dir=cache).train))


def test_rows_of_a_hub_data_set_that_change_after_they_were_hashed_are_refused(phi: Any) -> None:
    import datasets

    rows = [row(number, "Hello") for number in range(20)]
    source = HubSource("owner/data", datasets.Dataset.from_list(rows))
    source.sha256()
    assert len(list(source.rows(Rejects("x")))) == 20
    rows[7] = row(7, "Bye")
    source.data = datasets.Dataset.from_list(rows).with_format("arrow")
    with pytest.raises(DataError) as caught:
        list(source.rows(Rejects("x")))
    assert caught.value.key == "dataset.changed"


def test_a_cache_that_cannot_be_written_leaves_no_file(phi: Any, write_rows: WriteRows, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(EnvironmentFault) as caught:
        prepare(write_rows(row(1)), phi, cache_dir=tmp_path / "cache")
    assert caught.value.key == "tokens.disk"


def test_a_tokenizer_without_padding_or_end_still_pads(byte_level: Any, write_rows: WriteRows) -> None:
    tokenizer = byte_level(None)
    tokenizer.eos_token = None
    prepared = prepare(write_rows({"text": "Hello there"}), tokenizer, max_length=64)
    assert prepared.report.pad_token_id == 0
    assert np.all(prepared.train.batch([0]).input_ids[0, -10:] == 0)
