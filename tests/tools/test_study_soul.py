"""Tests of the soul study: its cells are valid settings, and its table pairs the seeds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from study import measure
from study.cells import CELLS, COMMON
from study.measure import texts_of
from study.tables import README, markdown, with_tables
from study_soul import TRIAL, jobs, parse, path_of, setting

from aegis.config.train_settings import TrainConfig
from aegis.data.packing import Windows
from aegis.data.tokens import ids_of
from aegis.data.training_set import load_training_set
from aegis.demo.corpus import documents
from aegis.model.base import load_tokenizer
from aegis.runs.run import Run


@pytest.mark.parametrize("cell", CELLS)
def test_each_cell_of_the_study_is_a_valid_training(cell: str) -> None:
    TrainConfig(**{**COMMON, **CELLS[cell].settings})
    TrainConfig(**{**COMMON, **CELLS[cell].settings, **TRIAL})


def test_every_training_has_its_own_file() -> None:
    args = parse(["base", "out", "--domain", "ja=a.jsonl", "--domain", "en=b.jsonl", "--other", "c.jsonl"])
    paths = {path_of(args.out, job) for job in jobs(args)}
    assert len(paths) == len(jobs(args)) == 2 * 3 * len(CELLS)


def test_a_plan_is_trained_in_its_order_and_each_training_once(tmp_path: Path) -> None:
    plan = tmp_path / "plan.txt"
    plan.write_text("dense + keep | en | 1\n\nLoRA alone | ja | 2\ndense + keep | en | 2\n")
    args = ["base", "out", "--domain", "ja=a.jsonl", "--domain", "en=b.jsonl", "--other", "c", "--plan", str(plan)]
    found = [("dense + keep", "en", 0), ("LoRA alone", "ja", 0), ("LoRA alone", "ja", 1), ("dense + keep", "en", 1)]
    assert jobs(parse(args)) == found
    plan.write_text("dense + keep | fr | 1\n")
    with pytest.raises(SystemExit, match="no such domain: fr"):
        jobs(parse(args))


def test_a_setting_of_all_trainings_is_json_or_plain_text() -> None:
    found = dict(map(setting, ['lora_targets=["all-linear"]', "max_length=128", "load_in=16bit", "rotation=so8"]))
    assert found == {"lora_targets": ["all-linear"], "max_length": 128, "load_in": "16bit", "rotation": "so8"}


def test_a_training_is_judged_on_rows_that_its_own_seed_holds_out(
    quick_base: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that another seed holds out are the control: this seed trains on them."""
    monkeypatch.setattr(measure, "heldout_of", lambda run: object())
    data, tokenizer = tmp_path / "a.jsonl", load_tokenizer(quick_base)
    texts = itertools.islice(documents(0, 40), 40)
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")

    def rows(windows: Windows) -> set[bytes]:
        edges = zip(windows.first_token[:-1], windows.first_token[1:], strict=True)
        return {ids_of(windows.tokens.read(int(start), int(end))).tobytes() for start, end in edges}

    configs = [TrainConfig(dataset=str(data), max_length=512, seed=seed) for seed in (0, 1)]
    trained = rows(load_training_set(configs[0], tokenizer).train)
    own, others = (rows(texts_of(Run(tmp_path), config, tokenizer, data).new) for config in configs)
    assert own
    assert not own & trained
    assert others & trained


def row(cell: str, seed: int, loss: float) -> dict[str, object]:
    judged = {"loss": loss, "temperature": 1.0, "calibration_error": 0.0, "kl": 0.1}
    return {"cell": cell, "domain": "ja", "seed": seed, "new": judged, "kept": judged, "other": judged, "seconds": 1}


def test_differences_are_paired_by_seed() -> None:
    """Seeds far apart from each other, and a difference that is the same in each, have an interval of zero."""
    reference, cell = "LoRA alone", "dense + keep"
    results = [row(reference, seed, 1.0 + seed) for seed in range(3)] + [
        row(cell, seed, 0.9 + seed) for seed in range(3)
    ]
    base = {name: {"loss": 2.0, "temperature": 1.0, "calibration_error": 0.0} for name in ("new", "kept", "other")}
    lines = markdown({"bases": {"ja": base}, "results": results})
    (found,) = [line for line in lines if line.startswith(f"| {cell} ")]
    assert "-0.1000 ± 0.0000" in found


def test_the_readmes_tables_are_those_of_the_published_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert "| LoRA alone |" in text
    assert with_tables(text) == text
    assert with_tables(text.replace("| LoRA alone |", "| LoRA |")) == text
