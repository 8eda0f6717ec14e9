"""Tests of manifest.json: its identity, the damage that it shows, and its own damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aegis import progress
from aegis.errors import IntegrityError
from aegis.limits import RECORD_BYTES
from aegis.runs import manifest
from aegis.runs.manifest import MANIFEST, Manifest, digest, finished, read_manifest, verify_directory, versions
from aegis.runs.publish import publishing
from tests.conftest import Recorder

ASKED = Manifest("merge", {"dtype": "float16", "seed": 1}, {"base": "aa", "soul": "bb"}, {"alpha": 1.618})


@pytest.fixture
def published(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    with publishing(out, ASKED) as staging:
        (staging.path / "weights.bin").write_bytes(bytes(range(256)) * 40)
        (staging.path / "日本").mkdir()
        (staging.path / "日本" / "語.txt").write_text("やあ", encoding="utf-8")
        staging.facts = {**ASKED.facts, "found": [1, 2]}
    return out


def test_a_written_manifest_is_read_back(published: Path) -> None:
    found = verify_directory(published)
    assert (found.stage, found.config, found.inputs) == (ASKED.stage, ASKED.config, ASKED.inputs)
    assert found.facts == {"alpha": 1.618, "found": [1, 2]}
    assert set(found.files) == {"weights.bin", "日本/語.txt"}
    assert found.versions == versions()
    assert {"aegis", "python", "torch"} <= set(found.versions)


def test_the_identity_depends_on_settings_and_inputs() -> None:
    """Key order and recorded facts do not change it; a setting, an input or the stage does."""
    turned = Manifest("merge", {"seed": 1, "dtype": "float16"}, {"soul": "bb", "base": "aa"}, {"other": 1})
    assert turned.identity == ASKED.identity
    for change in ({"stage": "train"}, {"config": {"dtype": "float16", "seed": 2}}, {"inputs": {"base": "aa"}}):
        assert replace(ASKED, **change).identity != ASKED.identity
    assert digest({"a": {"b": 1, "c": 2}}) == digest({"a": {"c": 2, "b": 1}}) != digest({"a": {"b": 2, "c": 1}})


def test_the_exact_identity_depends_on_every_byte_too(published: Path) -> None:
    """Another converter makes other bytes of the same settings and inputs."""
    before = read_manifest(published)
    with publishing(published, ASKED, overwrite=True) as staging:
        (staging.path / "weights.bin").write_bytes(b"other")
    after = read_manifest(published)
    assert after.identity == before.identity
    assert after.exact_identity != before.exact_identity
    other = replace(before, config={})
    assert other.files_digest == before.files_digest
    assert other.exact_identity != before.exact_identity


def test_the_identity_is_the_same_after_reading(published: Path) -> None:
    """JSON turns tuples into lists and keys into strings; the hash does not depend on that."""
    asked = replace(ASKED, config={"quant": ["Q4_K_M"], "name": "日本", "rate": 2e-4})
    with publishing(published, asked, overwrite=True):
        pass
    assert read_manifest(published).identity == asked.identity


@pytest.mark.parametrize(
    ("damage", "shown"),
    [
        (lambda path: path.unlink(), "weights.bin: missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "weights.bin: 10239 bytes, should be 10240"),
        (lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), "weights.bin: its content changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512] + bytes(512)), "weights.bin: its content changed"),
    ],
)
def test_a_damaged_file_of_a_folder_is_named(published: Path, damage: object, shown: str) -> None:
    """Missing, truncated, one byte flipped, a tail of zeros; and every file that is wrong, not only the first."""
    damage(published / "weights.bin")  # type: ignore[operator]
    (published / "日本" / "語.txt").unlink()
    with pytest.raises(IntegrityError) as caught:
        verify_directory(published)
    assert shown in caught.value.why
    assert "日本/語.txt: missing" in caught.value.why


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "3",
        '"text"',
        "[" * 100_000,
        "\ud800".encode("utf-16", "surrogatepass"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(published: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (published / MANIFEST).write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        read_manifest(published)


@pytest.mark.parametrize("key", ["version", "stage", "config", "inputs", "facts", "files", "versions"])
def test_a_manifest_without_a_key_is_refused(published: Path, key: str) -> None:
    path = published / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    del document[key]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(IntegrityError, match=key):
        read_manifest(published)


@pytest.mark.parametrize(
    "change",
    [
        {"config": 3},
        {"inputs": None},
        {"inputs": ["a"]},
        {"facts": "text"},
        {"files": []},
        {"files": {"a": 3}},
        {"files": {"a": {"bytes": 1}}},
        {"files": {"a": {"bytes": "many", "sha256": ""}}},
        {"files": {"a": {"bytes": float("inf"), "sha256": ""}}},
        {"files": {"a": {"bytes": -1, "sha256": ""}}},
        {"files": {"a": {"bytes": 1, "sha256": 1}}},
        {"files": {"a": {"bytes": 10**30, "sha256": ""}}},
        {"config": []},
        {"facts": [["alpha", 1]]},
        {"versions": []},
        {"config": {"seed": 10**400}},
        {"config": {"dtype": "\ud800"}},
        {"facts": {"\udfff": 1}},
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(published: Path, change: dict[str, object]) -> None:
    path = published / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(IntegrityError, match="damaged"):
        verify_directory(published)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"format": "other"}, "not_ours"), ({"format": None}, "not_ours"), ({"version": 99}, "other_version")],
)
def test_a_manifest_of_another_program_or_version_is_no_damaged_one(
    published: Path, change: dict[str, object], key: str
) -> None:
    path = published / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(IntegrityError) as caught:
        read_manifest(published)
    assert caught.value.key == f"manifest.{key}"


def test_a_folder_without_a_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)


def test_a_folder_is_finished_if_it_is_undamaged_and_has_the_same_identity(published: Path, reporter: Recorder) -> None:
    """Every byte must be there, made with these settings from these inputs."""
    assert finished(published, ASKED) is not None
    assert finished(published, replace(ASKED, config={})) is None
    assert finished(published / "nothing", ASKED) is None
    assert reporter.warned == []
    (published / "weights.bin").write_bytes(b"")
    assert finished(published, ASKED) is None
    assert any("rebuilding out" in text for text in reporter.warned)


def test_a_name_that_no_file_can_have_is_one_of_a_file_that_differs(published: Path) -> None:
    path = published / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    document["files"] |= {name: {"bytes": 1, "sha256": ""} for name in ("n" * 300, "d/" * 3000 + "x", "\x00")}
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(IntegrityError) as caught:
        verify_directory(published)
    assert caught.value.key == "manifest.folder_differs"
    assert caught.value.why.count("File name too long") == 2
    assert caught.value.why.count("missing") == 1


def test_hashing_of_large_files_has_a_progress_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealing and checking report every byte; small files open no bar. Files are read side by side, in any order."""
    opened: list[tuple[str, float, list[float]]] = []

    class Counting(progress.SilentReporter):
        @contextmanager
        def task(self, title: str, total: float | None, unit: str) -> Iterator[progress.Task]:
            bar = progress.SilentTask()
            done: list[float] = []
            bar.advance = done.append  # type: ignore[method-assign,assignment]
            opened.append((f"{title} {unit}", total or 0, done))
            yield bar

    monkeypatch.setattr(progress, "_reporter", Counting())

    def made() -> None:
        with publishing(tmp_path / "part", Manifest("x", {}, {}, {}), overwrite=True) as staging:
            (staging.path / "a.bin").write_bytes(bytes(1000))
            (staging.path / "known.bin").write_bytes(bytes(10))
            staging.hashed("known.bin", 10, hashlib.sha256(bytes(10)).hexdigest())

    made()
    before = verify_directory(tmp_path / "part")
    assert opened == []
    monkeypatch.setattr(manifest, "_WORTH_A_BAR_BYTES", 100)
    monkeypatch.setattr(manifest, "_READ_BYTES", 300)
    made()
    assert opened.pop() == ("hashing part B", 1000, [300, 300, 300, 100])
    assert verify_directory(tmp_path / "part") == before
    title, total, done = opened.pop()
    assert (title, total, sorted(done)) == ("hashing part B", 1010, [10, 100, 300, 300, 300])


def test_a_manifest_beyond_its_bound_is_refused(published: Path) -> None:
    """One that anybody wrote beside a file is read before the file."""
    path = published / MANIFEST
    path.write_bytes(path.read_bytes().ljust(RECORD_BYTES))
    read_manifest(published)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="damaged"):
        read_manifest(published)
