"""What a report recorded, said again in a reader's language."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import IntegrityError
from aegis.llama_cpp import GgufFile
from aegis.llama_cpp.convert import refuse_damaged
from aegis.messages import VARIABLE, Bilingual, bilingual
from aegis.messages.again import again
from aegis.model.shards import ShardSet
from aegis.runs.manifest import Manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.verification.run_checks import Check, Checks
from tests.shown import english_in

TEXTS = {
    "a plain name": lambda: bilingual("structure.head"),
    "a name with a place": lambda: bilingual("structure.files", folder="merged"),
    "a number in a format": lambda: bilingual("structure.gate", gate=0.25, kind="so8"),
    "one word beside a place": lambda: bilingual("structure.tensors", count=3),
    "several": lambda: Bilingual.joined("; ", [bilingual("verify.same_ids", compared=7), bilingual("parity.composed")]),
    "one within another": lambda: bilingual(
        "parity.chat",
        messages=2,
        difference=bilingual("parity.difference", place=1, ours=[2], theirs=[3], ours_count=4, theirs_count=5),
    ),
}


@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS.keys())
def test_what_was_recorded_is_shown_as_it_was_then(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "ja")
    text: Bilingual = make()  # type: ignore[operator]
    assert text.english != text.shown
    assert again(text.english, "ja") == text.shown
    assert again(text.english, "en") == text.english


def test_names_and_strangers_words_stay_as_they_are() -> None:
    """A folder or file may be called like a label of ours."""
    for text in ("merged", "model-Q4_K_M.gguf", "trained → wide", "boom: out of cheese", "", "{curly} {0}"):
        assert again(text, "ja") == text


def failed(work: object, folder: Path) -> Check:
    checks = Checks()
    with checks.check(bilingual("structure.files", folder="adapter"), "train"):
        work(folder)  # type: ignore[operator]
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
def test_a_check_that_failed_is_recorded_in_english_whoever_reads(
    work: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And said again in Japanese, to the letter, from what was recorded; the English run is the control."""
    found = {}
    for spoken in ("en", "ja"):
        monkeypatch.setenv(VARIABLE, spoken)
        (folder := tmp_path / spoken).mkdir()
        detail = failed(work, folder).detail
        found[spoken] = Bilingual(*(side.replace(str(folder), "FOLDER") for side in detail))
    assert found["ja"].english == found["en"].english == found["en"].shown
    assert english_in(found["ja"].english)
    assert english_in(found["ja"].shown) == []
    assert again(found["ja"].english, "ja") == found["ja"].shown
