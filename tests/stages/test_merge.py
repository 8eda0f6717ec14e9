"""Tests of merge: the result is the trained model in a stock folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis.config.settings import MergeConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import EnvironmentFault, IntegrityError, UnsupportedModelError, UsageError
from aegis.model.adapter import load_adapter
from aegis.model.base import find_base, hash_weights
from aegis.model.load import load_base
from aegis.model.shards import INDEX, ShardSet
from aegis.runs.facts import MergeFacts
from aegis.runs.manifest import Manifest, read_manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.soul.fold import fold_head
from aegis.soul.kind import Kind
from aegis.stages.merge import MergeInputs, merge
from tests.conftest import MakeRandom, Recorder
from tests.recorded import train_facts
from tests.trained import MakeTrained, Trained, tokens_for

FLOAT32 = MergeConfig(dtype="float32")
FLOAT16 = MergeConfig()


def stock(folder: Path) -> object:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture(scope="session")
def bases(quick_base: Path, make_random: MakeRandom) -> dict[str, Path]:
    return {
        "phi3": quick_base,
        "llama": make_random("llama"),
        "llama-tied": make_random("llama", tie_word_embeddings=True),
        "llama-sharded": make_random("llama", shards=3),
    }


@pytest.mark.parametrize("kind", ["so8", "dense"])
@pytest.mark.parametrize("name", ["phi3", "llama", "llama-tied", "llama-sharded"])
def test_the_merged_model_equals_the_live_one(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, name: str, kind: Kind
) -> None:
    """In float32 the merged folder's stock model gives the live logits to 1e-5; unfolded or with Rᵀ it does not."""
    trained = make_trained(bases[name], kind=kind)
    tokens = tokens_for(trained.model)
    live = trained.logits(tokens)
    report = merge(MergeInputs(str(bases[name]), trained.adapter), tmp_path / "merged", FLOAT32)
    merged = stock(tmp_path / "merged")
    with torch.no_grad():
        folded = merged(input_ids=tokens).logits
        assert relative_error(folded, live) < 1e-5

        # the controls: the head as it was, and the head folded the wrong way round
        source = trained.model.get_output_embeddings().weight
        for wrong in (source, fold_head(source, trained.soul.rotation().mT, report.gate)):
            merged.lm_head.weight.copy_(wrong)
            assert relative_error(merged(input_ids=tokens).logits, live) > 0.1
    assert report.untied == (name == "llama-tied")


def test_tied_embeddings_are_unchanged(tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained) -> None:
    """Untying writes a separate head; the embeddings are the base's bit for bit, and the config is untied."""
    trained = make_trained(bases["llama-tied"])
    merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", FLOAT16)
    before = ShardSet.open(trained.base).entries["model.embed_tokens.weight"].read()
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(after["model.embed_tokens.weight"], before.to(torch.float16))
    assert relative_error(after["lm_head.weight"].float(), before.float()) > 0.1
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False


SOUL = ("lm_head.weight", "model.norm.weight")
"""What the soul changes: the head that it is folded into, and the final norm that takes its counter-scale."""
DEQUANTIZED = MergeConfig(dtype="float32", base_weights="dequantized")


def sealed(trained: Trained, load_in: str = "4bit", dtype: str = "float32") -> Path:
    """Return the adapter in a folder with a manifest, as training publishes it."""
    facts = train_facts(compute_dtype=dtype)
    config = TrainConfig.model_validate({"load_in": load_in}).model_dump(mode="json")
    manifest = Manifest("train", config, {"base": hash_weights(ShardSet.open(trained.base))}, facts)
    folder = trained.adapter.with_name("sealed")
    with publishing(folder, manifest) as staging:
        shutil.copytree(trained.adapter, staging.path, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["phi3", "llama-tied", "llama-sharded"])
def test_the_round_trip_equals_bitsandbytes_weights(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, name: str, dtype: torch.dtype
) -> None:
    """Every weight that the really loaded NF4 model quantizes, to the bit in training's dtype; all others untouched."""
    trained = make_trained(bases[name])
    adapter = sealed(trained, dtype=str(dtype).removeprefix("torch."))
    merge(MergeInputs(str(trained.base), adapter), tmp_path / "merged", DEQUANTIZED)
    held = load_base(trained.base, "4bit", torch.device("cpu"), dtype).dequantize(dtype).state_dict()
    original = {key: entry.read().float() for key, entry in ShardSet.open(trained.base).entries.items()}
    updates = load_adapter(adapter).updates
    quantized = 0
    for key, merged in load_file(next((tmp_path / "merged").glob("*.safetensors"))).items():
        if key in SOUL:
            continue
        expected = held[key].float()
        if key in updates:
            expected += updates[key].delta(0, len(expected))
        assert torch.equal(merged, expected), key
        quantized += not torch.equal(held[key].float(), original[key])
    assert quantized > 1
    manifest = read_manifest(tmp_path / "merged")
    assert manifest.config["base_weights"] == "dequantized"
    assert MergeFacts.of(manifest).nf4_dtype == str(dtype).removeprefix("torch.")


def test_merging_into_the_round_trip_gives_the_trained_model(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained
) -> None:
    """The live NF4 model's logits to 1e-5; the merge into the original weights is farther off by far."""
    from aegis.model.live_model import live_model

    trained = make_trained(bases["phi3"])
    adapter = sealed(trained)
    inputs = MergeInputs(str(trained.base), adapter)
    merge(inputs, tmp_path / "dequantized", DEQUANTIZED)
    merge(inputs, tmp_path / "original", FLOAT32)
    tokens = tokens_for(trained.model)
    base = find_base(str(trained.base))
    with torch.no_grad():
        with live_model(base, adapter, "4bit", torch.device("cpu")) as model:
            live = model(input_ids=tokens).logits
        assert relative_error(stock(tmp_path / "dequantized")(input_ids=tokens).logits, live) < 1e-5
        assert relative_error(stock(tmp_path / "original")(input_ids=tokens).logits, live) > 1e-2


def test_a_round_trip_after_16_bit_training_is_refused(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained
) -> None:
    trained = make_trained(bases["phi3"])
    with pytest.raises(UsageError, match="no NF4 round trip"):
        merge(MergeInputs(str(trained.base), sealed(trained, "16bit")), tmp_path / "merged", DEQUANTIZED)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_without_its_training_settings_is_refused_a_round_trip(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, reporter: Recorder
) -> None:
    """It is assumed to be trained on NF4, with a warning."""
    trained = make_trained(bases["phi3"])
    merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", DEQUANTIZED)
    assert any("does not record how its base was held" in text for text in reporter.warned)


def test_rows_that_are_not_complete_blocks_are_refused(
    tmp_path: Path, make_random: MakeRandom, make_trained: MakeTrained
) -> None:
    trained = make_trained(make_random("llama", intermediate_size=96))
    with pytest.raises(UnsupportedModelError, match=r"down_proj is not supported: its rows are not multiples of 64"):
        merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", DEQUANTIZED)


@pytest.mark.parametrize(
    "lora",
    [{"rank": 7, "alpha": 3}, {"use_rslora": True}, {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 32}}],
)
def test_every_scale_of_peft_is_merged(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, lora: dict
) -> None:
    """r, alpha, rslora and patterns give the weights peft's own merge gives."""
    from peft import LoraConfig, get_peft_model

    trained = make_trained(bases["phi3"])
    config = LoraConfig(
        r=lora.pop("rank", 4), lora_alpha=lora.pop("alpha", 8), target_modules=["qkv_proj", "o_proj"], **lora
    )
    plain = get_peft_model(stock(trained.base), config)
    for parameter_name, parameter in plain.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(0, 0.1)
    shutil.rmtree(trained.adapter / "x", ignore_errors=True)
    plain.save_pretrained(trained.adapter, save_embedding_layers=False)
    merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", FLOAT32)
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    theirs = plain.merge_and_unload().state_dict()
    for key in ours:
        if key not in SOUL:
            assert torch.allclose(ours[key], theirs[key], atol=1e-6), key


def test_the_merged_folder_is_a_stock_model(tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained) -> None:
    """The base's names, shards and tokenizer bytes; no code, no soul, LongRoPE as the base wrote it."""
    base = tmp_path / "base"
    shutil.copytree(bases["phi3"], base)
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    trained = make_trained(base)
    merge(MergeInputs(str(base), trained.adapter), tmp_path / "merged", FLOAT16)
    out = tmp_path / "merged"
    written = json.loads((out / "config.json").read_text())
    assert "auto_map" not in written
    assert written["rope_scaling"] == config["rope_scaling"]
    assert written["torch_dtype"] == "float16"
    assert not list(out.glob("*.py"))
    assert not (tmp_path / "ran").exists()
    assert (out / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    assert (out / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    assert set(ShardSet.open(out).entries) == set(ShardSet.open(base).entries)
    assert {e.dtype for e in ShardSet.open(out).entries.values()} == {torch.float16}
    assert MergeFacts.of(verify_directory(out)).base_model == str(base)


def test_shards_keep_their_names(tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained) -> None:
    trained = make_trained(bases["llama-sharded"])
    merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", FLOAT16)
    before = json.loads((trained.base / INDEX).read_text())["weight_map"]
    after = json.loads((tmp_path / "merged" / INDEX).read_text())
    assert after["weight_map"] == before
    assert len(set(before.values())) > 1
    assert after["metadata"]["total_size"] == ShardSet.open(tmp_path / "merged").bytes


def edited_config(trained: Trained, **changes: object) -> None:
    path = trained.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"fan_in_fan_out": True},
        {"invented_in_2031": {"on": True}},
        {"peft_type": "LOHA"},
        {"init_lora_weights": "pissa_niter_4"},
    ],
)
def test_unmergeable_adapters_are_refused_by_name(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, change: dict[str, object]
) -> None:
    trained = make_trained(bases["phi3"])
    edited_config(trained, **change)
    (name, value) = next(iter(change.items()))
    with pytest.raises(UsageError) as caught:
        merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", FLOAT16)
    assert (value if isinstance(value, str) and name != "bias" else name) in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_another_base_is_refused(tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained) -> None:
    """Same shapes, other weights: the soul knows its base by hash."""
    trained = make_trained(bases["phi3"])
    other = tmp_path / "other"
    shutil.copytree(bases["phi3"], other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="was not trained on"):
        merge(MergeInputs(str(other), trained.adapter), tmp_path / "merged", FLOAT16)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "other"]


def test_the_base_is_read_once_and_the_recorded_hash_is_of_the_merged_bytes(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with untied heads, shards and round trips, the hash is that of the files."""
    monkeypatch.setattr("aegis.model.base.hash_weights", lambda _: pytest.fail("a pass over the base of its own"))
    for name, config in (("llama-tied", FLOAT16), ("llama-sharded", FLOAT16), ("phi3", DEQUANTIZED)):
        trained = make_trained(bases[name])
        merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / name, config)
        assert read_manifest(tmp_path / name).inputs["base"] == hash_weights(ShardSet.open(trained.base))
        shutil.rmtree(trained.adapter)


def test_shapes_of_another_base_are_named(tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained) -> None:
    trained = make_trained(bases["phi3"])
    with pytest.raises(IntegrityError, match=r"qkv_proj\.weight: not in the base"):
        merge(MergeInputs(str(bases["llama"]), trained.adapter), tmp_path / "merged", FLOAT16)


def test_a_soul_without_a_recorded_base_is_accepted_with_a_warning(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, reporter: Recorder
) -> None:
    """… when all shapes fit; and never a second time onto what it was folded into."""
    trained = make_trained(bases["phi3"], hashed=False)
    merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", FLOAT16)
    assert any("does not say which base" in text for text in reporter.warned)
    with pytest.raises(IntegrityError, match="already has a soul folded in"):
        merge(MergeInputs(str(tmp_path / "merged"), trained.adapter), tmp_path / "twice", FLOAT16)


def test_an_adapter_without_its_soul_is_refused(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained
) -> None:
    trained = make_trained(bases["phi3"])
    (trained.adapter / "soul.safetensors").unlink()
    with pytest.raises(IntegrityError, match="no soul"):
        merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", FLOAT16)


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "NaN or Inf"), (1e6, "does not fit torch.float16")])
def test_bad_values_name_the_tensor(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, value: float, message: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["phi3"], base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    trained = make_trained(base)
    with pytest.raises(IntegrityError, match=message) as caught:
        merge(MergeInputs(str(base), trained.adapter), tmp_path / "merged", FLOAT16)
    assert "model.layers.0.mlp.down_proj.weight" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "cohere"])
def test_families_that_lose_their_head_are_refused(
    tmp_path: Path, model_type: str, make_trained: MakeTrained, bases: dict[str, Path]
) -> None:
    trained = make_trained(bases["phi3"])
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": ["XForCausalLM"]}))
    with pytest.raises(UnsupportedModelError, match=f"{model_type}.* is not supported"):
        merge(MergeInputs(str(base), trained.adapter), tmp_path / "merged", FLOAT16)


def test_existing_output_is_kept(tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained) -> None:
    """An existing folder is an error; with overwrite it is replaced only by a whole one."""
    trained = make_trained(bases["phi3"])
    out, inputs = tmp_path / "merged", MergeInputs(str(trained.base), trained.adapter)
    with publishing(out, Manifest("train", {}, {}, {})) as staging:
        (staging.path / "old").touch()
    with pytest.raises(UsageError, match="exists"):
        merge(inputs, out, FLOAT16)
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"did not write: mine\.txt"):
        merge(inputs, out, FLOAT16, overwrite=True)
    (out / "mine.txt").unlink()
    assert (out / "old").exists()
    merge(inputs, out, FLOAT16, overwrite=True)
    assert verify_directory(out).stage == "merge"
    assert not (out / "old").exists()


@pytest.mark.parametrize("out", ["base", "adapter", "."])
def test_a_merge_never_replaces_its_inputs(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, out: str
) -> None:
    trained = make_trained(bases["phi3"])
    base = shutil.copytree(trained.base, tmp_path / "base")
    with pytest.raises(UsageError):
        merge(MergeInputs(str(base), trained.adapter), tmp_path / out, FLOAT16, overwrite=True)
    assert (base / "config.json").is_file()
    assert trained.adapter.is_dir()


def test_too_little_disk_space_is_an_error_before_the_work(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(bases["phi3"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(EnvironmentFault, match="not enough disk space for the merged model"):
        merge(MergeInputs(str(trained.base), trained.adapter), tmp_path / "merged", FLOAT16)
    assert not (tmp_path / "merged").exists()
