"""verify: a sound run passes, and every defect is found and blamed on the stage that made it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aegis.config import ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.errors import DataError, IntegrityError
from aegis.llama_cpp import GgufFile
from aegis.manifest import MANIFEST, FileRecord, file_sha256, read_manifest
from aegis.proof.verdict import Verdict
from aegis.runs import Run
from aegis.soul.file import load_soul, save_soul
from aegis.soul.fold import fold_head
from aegis.stages.export import export_gguf
from aegis.stages.merge import inputs_of_run, merge
from aegis.stages.train import train
from aegis.stages.verify import verify
from tests.byte_level import Pre
from tests.conftest import MakeRandom

QUICK = VerifyConfig(tokens=256, threads=1, device="cpu")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEGIS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        # the converter's tree is fetched once for all, not once for every cache
        from vendor_llama_cpp import converter_tree

        patch.delenv("AEGIS_CACHE_DIR")
        tree = converter_tree()
        patch.setenv("AEGIS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("LLAMA_CPP_DIR", str(tree))
        yield


@pytest.fixture(scope="module")
def finished(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that went through every stage, with its f16 file kept, on a base with a strong soul and adapter."""
    run = Run(tmp_path_factory.mktemp("finished") / "run")
    config = TrainConfig(
        base_model=str(quick_base),
        device="cpu",
        max_steps=24,
        warmup_steps=1,
        annealing_steps=10,
        batch_size=4,
        max_length=64,
        learning_rate=1e-2,
        save_steps=12,
    )
    train(config, run)
    make_merged(run)
    make_gguf(run)
    return run


def make_merged(run: Run) -> None:
    merge(inputs_of_run(run), run.merged, MergeConfig(), overwrite=True)


def make_gguf(run: Run, name: str = "tiny phi-3") -> None:
    export_gguf(run.merged, run.gguf, ExportConfig(keep_f16=True, name=name), overwrite=True)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy to break."""
    shutil.copytree(finished.root, tmp_path / "run")
    return Run(tmp_path / "run")


def test_a_sound_run_is_proven(run: Run) -> None:
    """No stage is guilty; rounding is far under its bounds and quantization is not; the report says the same."""
    verdict = verify(run, QUICK)
    assert verdict.failures == []
    found = {step.name: step.found for step in verdict.steps}
    assert list(found) == ["trained → wide", "wide → merged", "merged → f16", "f16 → Q4_K_M"]
    assert found["wide → merged"].mean_kl < 1e-5
    assert found["merged → f16"].mean_kl < 1e-5
    assert found["trained → wide"].mean_kl > 1e-4
    assert found["f16 → Q4_K_M"].mean_kl > 1e-4
    assert verdict.kept is not None
    assert verdict.kept.result_tempered <= verdict.kept.result
    report = json.loads((run.verify / "report.json").read_text(encoding="utf-8"))
    assert (report["schema"], report["version"], report["ok"]) == ("aegis-verify-report", 1, True)
    assert (run.verify / "divergence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("model_type", "pre", "settings"),
    [
        ("qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("phi", "phi-2", {"num_key_value_heads": 4, "intermediate_size": 1024}),
    ],
    ids=["tied", "head with bias"],
)
def test_other_families_are_proven(
    tmp_path: Path, make_random: MakeRandom, knowing_tree: Path, model_type: str, pre: Pre, settings: dict[str, Any]
) -> None:
    """Trained, merged, exported and verified whole: a tied head, and one with a bias, whose loss is found."""
    run = Run(tmp_path / "run")
    short = {"max_steps": 4, "warmup_steps": 1, "annealing_steps": 2, "batch_size": 2, "max_length": 64}
    base = make_random(model_type, pre=pre, **settings)
    train(TrainConfig(base_model=str(base), device="cpu", learning_rate=1e-2, **short), run)
    make_merged(run)
    export = ExportConfig(keep_f16=True, llama_cpp_dir=knowing_tree)
    export_gguf(run.merged, run.gguf, export)
    verdict = verify(run, QUICK)
    assert verdict.failures == []
    found = {step.name: step.found for step in verdict.steps}
    assert found["wide → merged"].mean_kl < 1e-5
    assert found["merged → f16"].mean_kl < 1e-5

    if model_type == "phi":
        tensors = load_file(run.merged / "model.safetensors")
        tensors["lm_head.bias"].zero_()
        save_file(tensors, run.merged / "model.safetensors", metadata={"format": "pt"})
        reseal(run.merged)
        export_gguf(run.merged, run.gguf, export, overwrite=True)
        verdict = verify(run, QUICK)
        assert verdict.guilty == "merge"
        assert any("lm_head.bias" in failure for failure in verdict.failures)


# -- one defect each, as a careless or broken stage would have made it: with a manifest that fits ----------------


def reseal(directory: Path, **inputs: str) -> None:
    """Make the manifest fit the files as they are now: the defect is then not a matter of hashes."""
    path = directory / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    document["files"] = {
        name: vars(FileRecord((directory / name).stat().st_size, file_sha256(directory / name)))
        for name in document["files"]
        if (directory / name).is_file()
    }
    document["inputs"] |= inputs
    path.write_text(json.dumps(document), encoding="utf-8")


def with_merged(change: Callable[[dict[str, torch.Tensor], Run], None]) -> Callable[[Run], None]:
    def defect(run: Run) -> None:
        path = run.merged / "model.safetensors"
        tensors = load_file(path)
        change(tensors, run)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
        reseal(run.merged)
        make_gguf(run)

    return defect


def base_tensors(run: Run) -> dict[str, torch.Tensor]:
    return load_file(Path(str(read_manifest(run.adapter).facts["base_model"])) / "model.safetensors")


def unfolded(tensors: dict[str, torch.Tensor], run: Run) -> None:
    tensors["lm_head.weight"] = base_tensors(run)["lm_head.weight"].half()


def transposed(tensors: dict[str, torch.Tensor], run: Run) -> None:
    soul = load_soul(run.adapter / "soul.safetensors")
    tensors["lm_head.weight"] = fold_head(base_tensors(run)["lm_head.weight"], soul.rotation.mT, soul.gate).half()


def wrong_gate(tensors: dict[str, torch.Tensor], run: Run) -> None:
    soul = load_soul(run.adapter / "soul.safetensors")
    tensors["lm_head.weight"] = fold_head(base_tensors(run)["lm_head.weight"], soul.rotation, 0.8).half()


def soul_of_another_step(tensors: dict[str, torch.Tensor], run: Run) -> None:
    soul = load_soul(run.checkpoints / "step_000012" / "soul.safetensors")
    tensors["lm_head.weight"] = fold_head(base_tensors(run)["lm_head.weight"], soul.rotation, soul.gate).half()


def adapter_dropped(tensors: dict[str, torch.Tensor], run: Run) -> None:
    for name, tensor in base_tensors(run).items():
        if name != "lm_head.weight":
            tensors[name] = tensor.half()


def one_layer_lost(tensors: dict[str, torch.Tensor], run: Run) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = base_tensors(run)[name].half()


def tied_flag_left(run: Run) -> None:
    path = run.merged / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    reseal(run.merged)


def flipped(path_of: Callable[[Run], Path]) -> Callable[[Run], None]:
    def defect(run: Run) -> None:
        path = path_of(run)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return defect


def name_without_family(run: Run) -> None:
    for path in run.gguf.glob("*.gguf"):
        data = path.read_bytes()
        assert data.count(b"tiny phi-3") == 1
        path.write_bytes(data.replace(b"tiny phi-3", b"tiny model"))
    reseal(run.gguf)


def without_added_tokens(run: Run) -> None:
    for path in run.gguf.glob("*.gguf"):
        data = path.read_bytes()
        assert b"<|end|>" in data
        path.write_bytes(data.replace(b"<|end|>", b"<|eND|>"))
    reseal(run.gguf)


def overwrite(run: Run, pattern: str, tensor: str, content: Callable[[int], bytes]) -> None:
    """Write `content` of a tensor's size over the beginning of that tensor, and reseal."""
    path = next(run.gguf.glob(pattern))
    with GgufFile(path) as gguf:
        info = gguf.tensors[tensor]
    new = content(info.size_bytes)
    assert 0 < len(new) <= info.size_bytes
    data = bytearray(path.read_bytes())
    data[info.offset_bytes : info.offset_bytes + len(new)] = new
    path.write_bytes(data)
    reseal(run.gguf)


def rope_factors_gone(run: Run) -> None:
    ones = struct.pack("<f", 1.0)
    overwrite(run, "*-F16.gguf", "rope_factors_long.weight", lambda size: ones * (size // 4))


def head_of_another_run(run: Run) -> None:
    head = base_tensors(run)["lm_head.weight"].half().numpy().tobytes()

    def whole(size: int) -> bytes:
        assert len(head) == size
        return head

    overwrite(run, "*-F16.gguf", "output.weight", whole)


def other_soul_in_adapter(run: Run) -> None:
    path = run.adapter / "soul.safetensors"
    soul = load_soul(path)
    save_soul(path, replace(soul, alpha=soul.alpha - 0.3))
    reseal(run.adapter)


def quantized_file_spoiled(run: Run) -> None:
    overwrite(run, "*-Q4_K_M.gguf", "output.weight", lambda size: bytes(size // 2))


@dataclass(frozen=True)
class Defect:
    """What is broken, how, which stage must be named, and a word the failure must hold."""

    name: str
    make: Callable[[Run], None]
    stage: str
    says: str
    config: VerifyConfig = QUICK


DEFECTS = (
    Defect("unfolded head", with_merged(unfolded), "merge", "not the folded head"),
    Defect("transposed R", with_merged(transposed), "merge", "not the folded head"),
    Defect("wrong g", with_merged(wrong_gate), "merge", "not the folded head"),
    Defect("soul of another step", with_merged(soul_of_another_step), "merge", "not the folded head"),
    Defect("adapter dropped", with_merged(adapter_dropped), "merge", "wide → merged"),
    Defect("one LoRA layer lost", with_merged(one_layer_lost), "merge", "wide → merged"),
    Defect("tied flag left", tied_flag_left, "merge", "leaves the head tied"),
    Defect("bit flipped in a shard", flipped(lambda run: run.merged / "model.safetensors"), "merge", "content changed"),
    Defect("soul swapped after the merge", other_soul_in_adapter, "merge", "another soul"),
    Defect(
        "bit flipped in the adapter", flipped(lambda run: run.adapter / "soul.safetensors"), "train", "content changed"
    ),
    Defect("bit flipped in the f16", flipped(lambda run: next(run.gguf.glob("*F16*"))), "convert", "content changed"),
    Defect("general.name without phi-3", name_without_family, "convert", "other ids"),
    Defect("added tokens gone", without_added_tokens, "convert", "<|end|>"),
    Defect("rope factors gone", rope_factors_gone, "convert", "rope_factors_long"),
    Defect("f16 head of another run", head_of_another_run, "convert", "output.weight is not"),
    Defect(
        "quantized tensor spoiled",
        quantized_file_spoiled,
        "quantize",
        "f16 → Q4_K_M",
        QUICK.model_copy(update={"most_kl_quantized": 0.3}),
    ),
)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defects_are_found_and_blamed(run: Run, defect: Defect) -> None:
    """The table: defect → stage named."""
    defect.make(run)
    verdict: Verdict = verify(run, defect.config)
    assert verdict.guilty == defect.stage, verdict.failures
    assert any(defect.says in failure for failure in verdict.failures), verdict.failures
    assert json.loads((run.verify / "report.json").read_text(encoding="utf-8"))["guilty"] == defect.stage


def test_an_unfinished_run_says_what_to_do(run: Run) -> None:
    shutil.rmtree(run.gguf)
    with pytest.raises(IntegrityError, match="not finished: there is no gguf/") as caught:
        verify(run, QUICK)
    assert "aegis export-gguf --run" in caught.value.fix
    assert not run.verify.exists()


def test_own_text(run: Run, tmp_path: Path) -> None:
    """A text of one's own is used; one too short to say anything is refused."""
    path = tmp_path / "text.txt"
    path.write_text("短い。", encoding="utf-8")
    with pytest.raises(DataError, match="too short"):
        verify(run, QUICK.model_copy(update={"text": path}))
    path.write_text("りんごは赤い果物です。\n\n" * 40, encoding="utf-8")
    verdict = verify(run, QUICK.model_copy(update={"text": path}))
    assert verdict.guilty is None
    assert verdict.tokens == 256
