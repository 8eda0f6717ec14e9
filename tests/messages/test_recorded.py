"""Tests of recorded texts: recorded as key, values and English, and shown in the user's language."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.errors import AegisError, IntegrityError, Interrupted, UsageError
from aegis.llama_cpp import GgufFile
from aegis.llama_cpp.convert import refuse_damaged
from aegis.messages import VARIABLE, Bilingual, bilingual
from aegis.model.shards import ShardSet
from aegis.runs.manifest import Manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.verification.run_checks import Check, Checks
from tests.screen_texts import english_in

TEXTS: dict[str, Callable[[], Bilingual]] = {
    "a plain name": lambda: bilingual("merged.tensors"),
    "a name with a place": lambda: bilingual("structure.files", folder="merged"),
    "a number in a format": lambda: bilingual("structure.gate", gate=0.25, kind="so8"),
    "a shape": lambda: bilingual("alone.shape.what", name="x", gguf_path=Path("a"), found=(2, 3), shape=(4, 5)),
    "one word beside a place": lambda: bilingual("structure.tokens", count=3),
    "several": lambda: Bilingual.joined("; ", [bilingual("verify.same_ids", compared=7), bilingual("parity.composed")]),
    "one with words around it": lambda: bilingual("manifest.changed").after("a: ").followed_by("!"),
    "one within another": lambda: bilingual(
        "parity.chat",
        messages=2,
        difference=bilingual("parity.difference", place=1, ours=[2], theirs=[3], ours_count=4, theirs_count=5),
    ),
    "a clause as a sentence": lambda: bilingual("manifest.changed").capitalised(),
    "an error within an error": lambda: (
        IntegrityError(
            "manifest.damaged", path="x", name="y", error=UsageError("files.unreadable", path="r", error="boom")
        ).text
    ),
}


@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS.keys())
def test_a_recorded_text_is_shown_with_its_recorded_values(
    make: Callable[[], Bilingual], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "ja")
    text = make()
    record = json.loads(json.dumps(text.recorded()))
    assert record["english"] == text.english != text.shown
    again = Bilingual.from_record(record)
    assert (again.english, again.shown) == (text.english, text.shown)


@pytest.mark.parametrize(
    "record",
    [
        "boom",
        {"english": "boom"},
        {"english": "boom", "key": "no.such", "values": {}},
        {"english": "boom", "key": "structure.files", "values": {}},
        {"english": "boom", "key": "structure.gate", "values": {"gate": "text", "kind": 1}},
        {"english": "boom", "key": "structure.files", "values": "folder"},
        {"english": "boom", "key": ["merged.tensors"], "values": {}},
        {"english": "boom", "parts": "none"},
        {"english": "boom", "key": "structure", "values": {}},
    ],
)
def test_a_recorded_key_without_a_message_is_shown_in_english(record: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "ja")
    assert Bilingual.from_record(record).shown == "boom"


def failed(work: Callable[[Path], object], folder: Path) -> Check:
    checks = Checks()
    with checks.check(bilingual("structure.files", folder="adapter"), "train"):
        work(folder)
    return checks.done[0]


def damaged(folder: Path) -> None:
    with publishing(folder / "out", Manifest("train", {}, {}, {})) as staging:
        for name in ("a", "b", "c"):
            (staging.path / name).write_bytes(b"whole")
    (folder / "out" / "a").unlink()
    (folder / "out" / "b").write_bytes(b"longer than it was")
    (folder / "out" / "c").write_bytes(b"other")
    verify_directory(folder / "out")


def no_gguf(folder: Path) -> None:
    (folder / "x.gguf").write_bytes(b"GGUF\x09\0\0\0")
    GgufFile(folder / "x.gguf")


def no_head(folder: Path) -> None:
    raise IntegrityError("gguf.differs", wrong=bilingual("gguf.head_missing"))


def no_converter(folder: Path) -> None:
    (folder / "part").write_bytes(b"GGUF\x09\0\0\0")
    refuse_damaged(folder / "part", bilingual("process.converter"))


def no_weights(folder: Path) -> None:
    (folder / "pytorch_model.bin").touch()
    ShardSet.open(folder)


@pytest.mark.parametrize("work", [damaged, no_gguf, no_head, no_converter, no_weights])
def test_a_failed_check_is_recorded_in_english_in_every_language(
    work: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And shown in Japanese, to the letter, from what was recorded; the English run is the control."""
    found = {}
    for spoken in ("en", "ja"):
        monkeypatch.setenv(VARIABLE, spoken)
        (folder := tmp_path / spoken).mkdir()
        record = json.loads(json.dumps(failed(work, folder).as_json()))["detail"]
        shown = Bilingual.from_record(record).shown
        found[spoken] = record["english"].replace(str(folder), "FOLDER"), shown.replace(str(folder), "FOLDER")
    assert found["ja"][0] == found["en"][0] == found["en"][1]
    assert english_in(found["ja"][0])
    assert english_in(found["ja"][1]) == []


def test_an_error_keeps_its_key_and_its_values() -> None:
    inner = UsageError("files.unreadable", path=Path("r"), error=OSError("boom"))
    error = IntegrityError("manifest.damaged", path=Path("x"), name="y", error=inner)
    assert (inner.key, dict(inner.values)) == ("files.unreadable", {"path": "r", "error": "boom"})
    assert error.values["error"] == inner.text
    assert error.text.recorded()["key"] == "manifest.damaged"


def test_another_fix_makes_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = Interrupted("train.stopped", exit_code=143, done=3, stop=9)
    before = (str(error), error.fix)
    other = error.with_fix(bilingual("train.go_on", run_root="run"))
    assert (type(other), other.exit_code, other.key, other.what) == (Interrupted, 143, error.key, error.what)
    assert "aegis train --resume --run run" in other.fix
    assert other.fix in str(other)
    assert (str(error), error.fix) == before
    monkeypatch.setenv(VARIABLE, "ja")
    assert other.text.english != other.text.shown


def test_an_error_keeps_only_the_text_of_a_value() -> None:
    """An exception among the values would keep its frames, and with them a model, in memory."""

    class Big:
        def __str__(self) -> str:
            return "big"

    error = AegisError("manifest.damaged", path=Big(), name=3, error=ValueError("x"))
    assert dict(error.values) == {"path": "big", "name": 3, "error": "x"}
