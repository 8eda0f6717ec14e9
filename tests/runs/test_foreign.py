"""Tests that no file which AEGIS did not write is replaced or removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.errors import UsageError
from aegis.runs.foreign import refuse_foreign, refuse_foreign_rows, refuse_inputs
from aegis.runs.manifest import FORMAT, MANIFEST, Manifest
from aegis.runs.publish import discard, publishing


@pytest.fixture
def published(tmp_path: Path) -> Path:
    with publishing(tmp_path / "gguf", Manifest("export-gguf", {}, {}, {})) as staging:
        (staging.path / "deep").mkdir()
        for name in ("model.gguf", "deep/file"):
            (staging.path / name).write_text("x")
    return tmp_path / "gguf"


def test_a_folder_of_published_files_may_be_replaced(published: Path) -> None:
    """And so may what a killed process left in it, what a file manager did, and one whose manifest is damaged."""
    (published / ".DS_Store").touch()
    (published / ".part.staging-7").mkdir()
    refuse_foreign(published, published.parent / "absent")
    (published / MANIFEST).write_text("{")
    refuse_foreign(published)
    (published / MANIFEST).write_text(json.dumps({"format": FORMAT, "version": 99}))
    refuse_foreign(published)


@pytest.mark.parametrize("name", ["mine.txt", ".notes", "deep/mine.txt", "other/mine.txt"])
def test_a_file_that_no_manifest_lists_keeps_its_folder(published: Path, name: str) -> None:
    (published / name).parent.mkdir(exist_ok=True)
    (published / name).write_text("mine")
    for attempt in (refuse_foreign, discard):
        with pytest.raises(UsageError) as caught:
            attempt(published)
        assert (caught.value.key, name in caught.value.what) == ("foreign.files", True)
    with pytest.raises(UsageError), publishing(published, Manifest("x", {}, {}, {}), overwrite=True):
        pytest.fail("replaced")
    assert (published / name).read_text() == "mine"


@pytest.mark.parametrize("manifest", [None, '{"name": "a web page"}'])
def test_a_folder_of_another_program_is_kept(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "page.html").touch()
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(UsageError):
        refuse_foreign(tmp_path)


def test_checkpoints_may_be_removed_and_a_file_among_them_may_not(tmp_path: Path) -> None:
    """Also one that has lost its manifest."""
    with publishing(tmp_path / "step_000002", Manifest("train", {}, {}, {})):
        pass
    (tmp_path / "step_000004").mkdir()
    (tmp_path / "step_000004" / "state.safetensors").touch()
    refuse_foreign(tmp_path)
    (tmp_path / "best.txt").touch()
    with pytest.raises(UsageError):
        refuse_foreign(tmp_path)


@pytest.mark.parametrize(
    ("text", "is_kept"), [("", False), ('{"step": 1, "lo', False), ('{"step": 1}\n', False), ('{"x": 1}\n', True)]
)
def test_rows_of_another_program_are_kept(tmp_path: Path, text: str, is_kept: bool) -> None:
    """A killed training leaves half a row."""
    (tmp_path / "metrics.jsonl").write_text(text)
    try:
        refuse_foreign_rows(tmp_path / "metrics.jsonl", tmp_path / "absent")
    except UsageError:
        assert is_kept
    else:
        assert not is_kept


@pytest.mark.parametrize(("out", "is_refused"), [("base", True), (".", True), ("base/../base", True), ("other", False)])
def test_an_output_that_is_or_holds_an_input_is_refused(tmp_path: Path, out: str, is_refused: bool) -> None:
    (tmp_path / "base").mkdir()
    try:
        refuse_inputs(tmp_path / out, tmp_path / "base")
    except UsageError:
        assert is_refused
    else:
        assert not is_refused
