"""Tests of facts: recorded facts are read back with their types, and invalid ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.errors import IntegrityError
from aegis.runs.facts import AdapterFacts, ExportFacts, MergeFacts, TrainFacts, VerifyFacts
from aegis.runs.facts_base import Facts
from aegis.runs.manifest import Manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from tests.recorded import export_facts, merge_facts, train_facts


def published(directory: Path, stage: str, facts: dict[str, Any]) -> Path:
    with publishing(directory, Manifest(stage, {}, {}, facts)) as staging:
        for name in ("m-Q4_K_M.gguf", "a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-F16.gguf"):
            (staging.path / name).write_bytes(b"GGUF")
    return directory


RECORDED: list[tuple[type[Facts], dict[str, Any]]] = [
    (AdapterFacts, train_facts()),
    (TrainFacts, train_facts(result=None)),
    (MergeFacts, merge_facts(nf4_dtype="bfloat16", nf4_device="cuda")),
    (ExportFacts, export_facts(files={"Q8_0": "a-Q8_0.gguf", "Q4_K_M": "a-Q4_K_M.gguf", "F16": "a-F16.gguf"})),
    (VerifyFacts, {"ok": True}),
]


@pytest.mark.parametrize(("kind", "facts"), RECORDED)
def test_recorded_facts_are_read_back(tmp_path: Path, kind: type[Facts], facts: dict[str, Any]) -> None:
    assert kind.read(published(tmp_path / "out", kind.stage, facts)).recorded() == facts


@pytest.mark.parametrize(("kind", "facts"), RECORDED)
def test_each_missing_or_invalid_fact_is_named(tmp_path: Path, kind: type[Facts], facts: dict[str, Any]) -> None:
    for name, field in kind.model_fields.items():
        damaged = [facts | {name: [{"x": "<b>"}]}]
        if field.is_required():
            damaged.append({key: value for key, value in facts.items() if key != name})
        for content in damaged:
            if name == "housekeeping" and name not in content:
                continue
            directory = published(tmp_path / f"{name}-{len(content)}", kind.stage, content)
            with pytest.raises(IntegrityError) as caught:
                kind.read(directory)
            assert caught.value.args == ("manifest.damaged",)
            assert f"facts.{name}" in caught.value.why
            assert str(directory / "manifest.json") in caught.value.what


def test_an_unknown_fact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"facts\.extra"):
        VerifyFacts.read(published(tmp_path / "out", "verify", {"ok": True, "extra": 1}))


def test_facts_of_another_stage_are_refused(tmp_path: Path) -> None:
    directory = published(tmp_path / "out", "merge", merge_facts())
    with pytest.raises(IntegrityError) as caught:
        TrainFacts.read(directory)
    assert caught.value.args == ("manifest.other_stage",)


@pytest.mark.parametrize("name", ["other.gguf", "../m-Q4_K_M.gguf", "/m.gguf", "m" * 300, ""])
def test_an_export_with_a_file_that_its_manifest_does_not_list_is_damaged(tmp_path: Path, name: str) -> None:
    """What runs a file takes its name from the facts: it may name none that was not published."""
    with pytest.raises(IntegrityError) as caught:
        ExportFacts.read(published(tmp_path / "out", "export-gguf", export_facts(files={"Q4_K_M": name})))
    assert (caught.value.key, "facts.files" in caught.value.why) == ("manifest.damaged", True)


def test_a_checkpoint_is_not_a_finished_training(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"facts\.result"):
        AdapterFacts.read(published(tmp_path / "out", "train", train_facts(result=None)))


def test_a_folder_that_merge_did_not_write_has_no_merge_facts(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert MergeFacts.known(tmp_path / "plain") is None
    assert MergeFacts.known(published(tmp_path / "gguf", "export-gguf", export_facts())) is None
    assert MergeFacts.known(published(tmp_path / "merged", "merge", merge_facts())) == MergeFacts(**merge_facts())


def test_gguf_files_are_found_by_their_type_whatever_their_names(tmp_path: Path) -> None:
    """A model may be called so that its file's name ends like another type's."""
    files = {"Q4_K_M": "my-F16.gguf", "F16": "my-Q4_K_M.gguf"}
    facts = ExportFacts(**export_facts(files=files))
    assert (facts.first, facts.f16, facts.quantized) == ("my-F16.gguf", "my-Q4_K_M.gguf", {"Q4_K_M": "my-F16.gguf"})
    alone = ExportFacts(**export_facts(files={"F16": "my-F16.gguf"}))
    assert (alone.first, alone.f16, alone.quantized) == ("my-F16.gguf", "my-F16.gguf", {})


def test_the_first_gguf_of_a_run_is_the_one_to_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    published(run.gguf, "export-gguf", export_facts())
    assert run.first_gguf() == run.gguf / "m-Q4_K_M.gguf"
    run.first_gguf().unlink()
    with pytest.raises(IntegrityError) as caught:
        run.first_gguf()
    assert caught.value.args == ("runs.no_gguf",)


def test_a_run_that_is_not_finished_names_the_first_stage_to_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for directory, stage in ((run.adapter, "train"), (run.merged, "merge"), (run.gguf, "export-gguf")):
        with pytest.raises(IntegrityError, match=f"aegis {stage} --run") as caught:
            run.require_finished()
        assert caught.value.args == ("runs.unfinished",)
        directory.mkdir()
    run.require_finished()
