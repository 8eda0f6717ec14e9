"""Tests of plan: it estimates a run for real bases and data, and writes nothing."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from aegis.cli.screens import plan as screens_plan
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.stage_config import StageConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import EnvironmentFault, IntegrityError, UnsupportedModelError, UsageError
from aegis.llama_cpp import find_converter
from aegis.model.empty_model import step_of_config
from aegis.model.shards import HEAD, ShardSet
from aegis.runs.manifest import MANIFEST, Manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from aegis.stages import plan as plan_module
from aegis.stages.plan import PlanReport, plan
from aegis.stages.plan_verify import plan_verify
from aegis.training.execution.options import ExecutionOptions
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.offload_or_checkpoint import MemoryPlanner
from aegis.verification.gguf_checks import files_bytes, vocabulary_bytes
from tests.conftest import MakeRandom, Recorder
from tests.recorded import export_facts, merge_facts, train_facts


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = (
        {"messages": [{"role": "user", "content": f"{n}番の花は?"}, {"role": "assistant", "content": "桜でござる。"}]}
        for n in range(40)
    )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Places:
    """The directories that a plan could write to."""

    cache: Path
    temporary: Path
    run: Run

    def untouched(self) -> bool:
        return not self.cache.exists() and not list(self.temporary.iterdir()) and not self.run.root.exists()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    import bitsandbytes  # noqa: F401 (it loads torch's compiler, which makes a temporary folder of its own then)

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return Places(tmp_path / "cache", temporary, Run(tmp_path / "run"))


def planned(run: Run, **settings: Any) -> PlanReport:
    config = TrainConfig(device="cpu", lora_r=4, max_length=32, heldout_rows=4, **settings)
    return plan(config, MergeConfig(), ExportConfig(), VerifyConfig(), run)


def test_a_plan_of_local_base_and_data_has_every_number(quick_base: Path, dataset: Path, places: Places) -> None:
    report = planned(places.run, base_model=str(quick_base), dataset=str(dataset), max_steps=7)
    assert (report.model_type, report.here, report.revision) == ("phi3", True, None)
    assert report.data is not None
    assert (report.data.rows, report.data.heldout_rows, report.data_missing) == (40, 4, "")
    assert [row.target for row in report.targets] == ["qkv_proj", "o_proj"]
    assert report.adapter_parameters == sum(row.parameters for row in report.targets)
    assert [variant.max_length for variant in report.variants] == [32, 16, 64, 32]
    assert [variant.asked_for for variant in report.variants] == [True, False, False, False]
    assert [variant.checkpointed_layers for variant in report.variants] == [0, 0, 0, report.layers]
    assert report.variants[1].memory.peak < report.variants[0].memory.peak < report.variants[2].memory.peak
    assert report.tokens == 7 * 32
    assert report.flops_per_second is not None
    assert report.flops_per_second > 0
    assert places.untouched()


def test_a_plan_reads_a_hub_dataset_that_is_here_and_names_the_command_for_another(
    quick_base: Path, dataset: Path, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is not asked in either case; offline mode ends with the plan."""
    import datasets

    cache = tmp_path / "datasets"
    datasets.load_dataset("json", data_files=str(dataset), cache_dir=str(cache))
    (made,) = cache.glob("json/*/*/*/dataset_info.json")
    of_hub = cache / "someone___flowers" / "default" / "0.0.0" / ("a" * 40)
    shutil.copytree(made.parent, of_hub)
    (of_hub / "json-train.arrow").rename(of_hub / "flowers-train.arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    report = planned(places.run, base_model=str(quick_base), dataset="someone/flowers", max_steps=7)
    assert report.data is not None
    assert (report.data.rows, report.data_missing) == (40, "")
    report = planned(places.run, base_model=str(quick_base), dataset="someone/birds", max_steps=7)
    assert report.data is None
    assert "aegis data someone/birds" in report.data_missing
    assert not datasets.config.HF_HUB_OFFLINE
    assert places.untouched()


def test_a_config_whose_model_cannot_take_a_step_is_at_fault_and_not_the_plan(
    quick_base: Path, dataset: Path, places: Places, tmp_path: Path
) -> None:
    """Refuse -1 heads, which transformers builds; the control is the same config as it was."""
    base = Path(shutil.copytree(quick_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    assert planned(places.run, base_model=str(base), dataset=str(dataset)).layers == config["num_hidden_layers"]
    (base / "config.json").write_text(json.dumps(config | {"num_key_value_heads": -1}), encoding="utf-8")
    with pytest.raises(IntegrityError) as refused, step_of_config(base):
        MemoryEstimator(base, TrainConfig(device="cpu"), "cpu").estimate(64, ExecutionOptions())
    assert refused.value.key == "base.no_step"
    with pytest.raises(UsageError), step_of_config(base):
        raise UsageError("base.none", name="what is known already stays as it is")


def test_a_base_without_weights_is_warned_of_unless_it_is_the_demo(
    quick_base: Path, dataset: Path, tmp_path: Path, places: Places, reporter: Recorder
) -> None:
    """The demo makes its base in its first run."""
    assert not planned(places.run, base_model="demo").here
    assert reporter.warned == []
    base = Path(shutil.copytree(quick_base, tmp_path / "base"))
    (base / "model.safetensors").unlink()
    assert not planned(places.run, base_model=str(base), dataset=str(dataset)).here
    assert any("has no weights" in text for text in reporter.warned)


def test_the_planned_disk_space_is_that_of_the_files(quick_base: Path, dataset: Path, places: Places) -> None:
    """The checkpoints, the folded 16-bit model with its tokenizer, and what export asks for."""
    report = planned(places.run, base_model=str(quick_base), dataset=str(dataset))
    weights, trained = report.parameters, 4 * (report.adapter_parameters + report.soul_parameters)
    needs = {need.what: need for need in report.needs}
    exported = files_bytes(quick_base, ShardSet.open(quick_base), ["F16", "Q4_K_M"])
    files = weights * 2 + vocabulary_bytes(quick_base) + exported + (4 * 4 + 1) * trained
    assert needs["disk_run"].bytes == files
    assert needs["ram_verify"].bytes == 4 * weights
    assert "disk_download" not in needs


def test_the_embedded_base_is_planned_before_it_is_built(places: Places) -> None:
    """Its base is pretrained by the first run; its shape is known before."""
    report = planned(places.run)
    assert report.here is False
    assert report.data is None
    assert "first run makes" in report.data_missing
    assert report.parameters > 10**6
    assert places.untouched()


def test_a_plan_without_the_gpu_says_what_is_unknown(
    quick_base: Path, dataset: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is estimated; whether it fits, and the speed, are unknown."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = TrainConfig(base_model=str(quick_base), dataset=str(dataset), device="cuda", max_length=32)
    report = plan(config, MergeConfig(), ExportConfig(), VerifyConfig(device="cuda"), places.run)
    assert (report.device, report.free_bytes, report.flops_per_second) == ("GPU", None, None)
    assert [variant.checkpointed_layers for variant in report.variants] == [0, 0, 0, report.layers]
    assert report.compiled
    text = screens_plan.planned(report, config)
    assert "There is no GPU here, so it is not known whether it fits" in text
    assert "not known without the GPU" in text
    kept = report.variants[0].host_bytes
    assert kept > 0
    assert {need.what: need.bytes for need in report.needs}["ram_training"] == kept
    assert "host memory  " in text
    on_a_cpu = planned(places.run, base_model=str(quick_base), dataset=str(dataset))
    assert not any(need.what == "ram_training" for need in on_a_cpu.needs)
    assert "host memory  " not in screens_plan.planned(on_a_cpu, config)
    offloaded = config.model_copy(update={"activation_checkpointing": "offload"})
    report = plan(offloaded, MergeConfig(), ExportConfig(), VerifyConfig(device="cuda"), places.run)
    assert report.variants[0].host_bytes > kept
    split = config.model_copy(update={"shard_base": True})
    needs = plan(split, MergeConfig(), ExportConfig(), VerifyConfig(device="cuda"), places.run).needs
    assert {need.what: need.bytes for need in needs}["ram_training"] == 2 * kept  # in two processes
    assert "RAM, training on a GPU" in screens_plan.planned(report, offloaded)


def test_a_plan_counts_what_a_finish_takes(
    quick_base: Path, dataset: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk, its rounding and its steps; for a type that gets none, nothing."""
    with monkeypatch.context() as patch:
        patch.delenv("AEGIS_CACHE_DIR")
        tree = find_converter()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    config = TrainConfig(base_model=str(quick_base), dataset=str(dataset), device="cuda", max_length=32, max_steps=200)
    rest = MergeConfig(), VerifyConfig(device="cuda"), places.run
    with_finish = plan(config, rest[0], ExportConfig(quant=("Q4_K_M",)), *rest[1:])
    without = plan(config, rest[0], ExportConfig(quant=("Q8_0",)), *rest[1:])
    assert with_finish.finish is not None
    assert (with_finish.finish.steps, with_finish.finish.quant) == (80, "Q4_K_M")
    (blocks,) = (need.bytes for need in with_finish.needs if need.what == "disk_blocks")
    entries = ShardSet.open(quick_base).entries
    rounded = sum(math.prod(entry.shape) for name, entry in entries.items() if ".mlp." in name)
    assert with_finish.finish.quantized == rounded
    assert 144 / 256 * rounded <= blocks < 210 / 256 * rounded  # Q4_K, and Q6_K for some
    assert "80" in screens_plan.planned(with_finish, config).splitlines()[-2]
    assert without.finish is None
    assert not [need for need in without.needs if need.what == "disk_blocks"]


def test_a_cap_is_used_without_the_gpu(
    quick_base: Path, dataset: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as free memory: as many layers are recomputed as needed, and a misfit is reported."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def capped(gib: float | None) -> tuple[PlanReport, str]:
        config = TrainConfig(
            base_model=str(quick_base), dataset=str(dataset), device="cuda", max_length=32, gpu_memory_gib=gib
        )
        report = plan(config, MergeConfig(), ExportConfig(), VerifyConfig(device="cuda"), places.run)
        return report, screens_plan.planned(report, config)

    free, _ = capped(None)
    assert (free.cap_bytes, free.variants[0].checkpointed_layers) == (None, 0)
    wide, text = capped(3)
    assert (wide.cap_bytes, wide.free_bytes, wide.variants[0].checkpointed_layers) == (3 * 2**30, None, 0)
    assert "training may hold 3 GiB (--gpu-memory-gib)" in text
    assert "whether it fits" not in text
    assert fits(text) == ["yes"] * 4
    narrow, text = capped(free.variants[0].memory.peak / 2**30)
    assert narrow.variants[0].checkpointed_layers > 0
    assert fits(text)[-1] == "NO"
    assert "offloaded" not in text


def test_offloaded_layers_have_a_row_and_a_legend(
    make_random: MakeRandom, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of the table, a line that says what it means, and what the host must have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = make_random("phi3", num_hidden_layers=8)
    config = TrainConfig(base_model=str(base), dataset="owner/data", device="cuda", max_length=32)
    rest = MergeConfig(), ExportConfig(), VerifyConfig(device="cuda"), places.run
    kept = plan(config.model_copy(update={"activation_checkpointing": "off"}), *rest).variants[0]
    report = plan(config, *rest)
    own = report.variants[0]
    assert (kept.offloaded_layers, own.offloaded_layers, own.checkpointed_layers) == (0, 3, 0)
    assert own.host_bytes > kept.host_bytes
    assert {need.what: need.bytes for need in report.needs}["ram_training"] == own.host_bytes
    text = screens_plan.planned(report, config)
    assert any(line.split()[:1] == ["offloaded"] and f"3/{report.layers}" in line for line in text.splitlines())
    assert "offloaded: layers whose activations are kept in host memory" in text


def test_the_need_is_compared_with_the_smaller_of_cap_and_memory(
    quick_base: Path, dataset: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a stand-in GPU with 11 GiB free, on which nothing is multiplied."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(plan_module, "find_device", lambda _: gpu)
    monkeypatch.setattr(plan_module, "free_bytes", lambda _: 11 * 2**30)
    monkeypatch.setattr(plan_module, "matrix_rate", lambda _: 1e13)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=12 * 2**30))
    room: list[int | None] = []

    class Noting(MemoryPlanner):
        def __init__(self, estimator: Any, config: TrainConfig, kind: str, free_bytes: int | None) -> None:
            room.append(free_bytes)
            super().__init__(estimator, config, kind, free_bytes)

    monkeypatch.setattr(plan_module, "MemoryPlanner", Noting)
    found = []
    for gib in (None, 3.0, 11.5, 80.0):
        config = TrainConfig(base_model=str(quick_base), dataset=str(dataset), max_length=32, gpu_memory_gib=gib)
        report = plan(config, MergeConfig(), ExportConfig(), VerifyConfig(), places.run)
        found.append((report.free_bytes, report.cap_bytes))
        assert fits(screens_plan.planned(report, config)) == ["yes"] * 4
    assert room == [11 * 2**30, 3 * 2**30, 11 * 2**30, 11 * 2**30]
    assert found == [(11 * 2**30, cap) for cap in (None, 3 * 2**30, 23 * 2**29, None)]
    # a step may fill nine tenths of the cap, and with CUDA itself what is free
    peak = report.variants[0].memory.peak
    for free, cap, fit in ((2**40, peak, "NO"), (2**40, peak + 2**30, "yes"), (peak, 10 * peak, "NO")):
        tight = replace(report, free_bytes=free, cap_bytes=cap, variants=report.variants[:1])
        assert fits(screens_plan.planned(tight, config)) == [fit]


def fits(text: str) -> list[str]:
    """Return the last row of the table of memory."""
    (row,) = [line.split()[1:] for line in text.splitlines() if line.startswith("fits")]
    return row


@pytest.fixture
def hub(make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A Hub that has owner/name, which is not in the cache; it records the calls."""
    source, calls = make_random("llama"), []

    def download(name: str, **given: Any) -> str:
        calls.append(given)
        if given.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        for path in source.iterdir():
            if any(path.match(pattern) for pattern in given["allow_patterns"]):
                (Path(given["local_dir"]) / path.name).write_bytes(path.read_bytes())
        return str(given["local_dir"])

    def info(name: str, *, revision: str | None = None) -> Any:
        return huggingface_hub.hf_api.ModelInfo(id=name, sha="c0ffee" + "0" * 34)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "model_info", info)
    return calls


def test_the_headers_of_a_hub_base_are_read_without_its_weights(
    hub: list[dict[str, Any]], dataset: Path, places: Places
) -> None:
    """Its config and tokenizer come into a folder that goes; no weights, and nothing in a cache."""
    report = planned(places.run, base_model="owner/name", dataset=str(dataset))
    assert (report.here, report.revision) == (False, "c0ffee" + "0" * 34)
    assert report.data is not None
    assert not any("safetensors" in pattern for pattern in hub[-1]["allow_patterns"])
    needs = {need.what: need.bytes for need in report.needs}
    assert needs["disk_download"] == 2 * report.parameters
    assert places.untouched()


@pytest.mark.parametrize(
    ("base", "error"), [("./nowhere", UsageError), ("owner/name", EnvironmentFault), ("gemma", UnsupportedModelError)]
)
def test_a_plan_refuses_what_a_run_would_refuse(
    base: str, error: type[Exception], places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if base == "gemma":
        folder = tmp_path / base
        folder.mkdir()
        config = {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        base = str(folder)
    with pytest.raises(error):
        planned(places.run, base_model=base)
    assert places.untouched()


def test_the_plan_is_shown_as_a_table(quick_base: Path, dataset: Path, places: Places) -> None:
    settings = TrainConfig(base_model=str(quick_base), dataset=str(dataset), device="cpu", max_length=32)
    report = plan(settings, MergeConfig(), ExportConfig(), VerifyConfig(), places.run)
    text = screens_plan.planned(report, settings)
    assert "32*" in text
    assert "16" in text
    assert "rows: 40" in text
    assert "this CPU did nothing but multiply matrices" in text
    assert text.endswith("nothing was written")
    assert all(word in text for word in ("weights", "adapter", "optimizer", "activations", "head and loss", "peak"))


def test_the_screen_of_a_sharded_base_has_a_column_per_number_of_processes(
    quick_base: Path, dataset: Path, places: Places
) -> None:
    """A column for each number of processes; on a CPU they share the memory."""
    settings = TrainConfig(base_model=str(quick_base), dataset=str(dataset), device="cpu", shard_base=True)
    report = plan(settings, MergeConfig(), ExportConfig(), VerifyConfig(), places.run)
    lines = screens_plan.planned(report, settings).splitlines()
    assert ["processes", "2", "3", "4", "8"] in [line.split() for line in lines]
    assert sum(line.startswith(("    its shard", "    gathered", "    in every")) for line in lines) == 3
    assert any("each loads the complete base" in line for line in lines)
    peak = report.variants[0].memory.peak
    room = replace(report, free_bytes=3 * (peak + (1 << 30)))
    assert fits(screens_plan.planned(room, settings)) == ["yes", "yes", "NO", "NO"]


@pytest.fixture
def finished(quick_base: Path, tmp_path: Path) -> Run:
    """Return a run with three published directories; only name and hash of its GGUF are read."""
    run = Run(tmp_path / "finished")
    made: list[tuple[Path, str, StageConfig, dict[str, Any]]] = [
        (run.adapter, "train", TrainConfig(), train_facts()),
        (run.merged, "merge", MergeConfig(), merge_facts()),
        (run.gguf, "export-gguf", ExportConfig(), export_facts()),
    ]
    for directory, stage, config, facts in made:
        with publishing(directory, Manifest(stage, config.model_dump(mode="json"), {}, facts)) as staging:
            if directory == run.merged:
                shutil.copytree(quick_base, staging.path, dirs_exist_ok=True)
            (staging.path / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    return run


def test_verify_is_planned_for_a_whole_run_only(finished: Run, places: Places, tmp_path: Path) -> None:
    """The models one after the other and the room they take; a changed file ends it at once."""
    outlook = plan_verify(finished, VerifyConfig(tokens=100, device="cpu"))
    assert outlook.models == ("trained", "wide", "merged", "f16", "Q4_K_M")
    vocabulary = ShardSet.open(finished.merged).entries[HEAD].shape[0]
    f16 = files_bytes(finished.merged, ShardSet.open(finished.merged), ["F16"])
    # float32 logits of five models and the base, of two on other text, and the f16 file, which was not kept
    assert outlook.scratch.bytes == (6 + 2) * 100 * vocabulary * 4 + f16
    path = finished.adapter / MANIFEST
    manifest = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({**json.loads(manifest), "inputs": {"kept": "a"}}), encoding="utf-8")
    keeping = plan_verify(finished, VerifyConfig(tokens=100, device="cpu"))
    assert keeping.scratch.bytes - outlook.scratch.bytes == 2 * 100 * vocabulary * 4
    path.write_text(manifest, encoding="utf-8")
    text = screens_plan.verify_planned(outlook)
    assert "every file is what its manifest says" in text
    assert places.untouched()
    (finished.gguf / "m-Q4_K_M.gguf").write_bytes(b"GGUX")
    for run in (finished, Run(tmp_path / "absent")):
        with pytest.raises(IntegrityError):
            plan_verify(run, VerifyConfig())
