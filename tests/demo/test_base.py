"""Tests of the demo base: its layout is that of a Phi-3 folder, and it is built once, completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from aegis import progress
from aegis.demo import base
from aegis.demo.base import base_config, demo_base_hash, ensure_demo_base
from aegis.demo.corpus import documents
from aegis.demo.pretrain import IGNORED, _padded, length_batches, mean_loss, unigram_loss
from aegis.demo.settings import DemoSettings

QUICK = DemoSettings.quick()


def test_the_folder_looks_like_phi_35s(quick_base: Path) -> None:
    config = json.loads((quick_base / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert config["rope_scaling"]["type"] == "longrope"
    pairs = config["hidden_size"] // config["num_attention_heads"] // 2
    assert [pairs, pairs] == [len(config["rope_scaling"][f"{which}_factor"]) for which in ("long", "short")]
    assert not config["tie_word_embeddings"]
    with safe_open(quick_base / "model.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert {torch.bfloat16} == {weight.dtype for weight in weights.values()}
    assert "model.layers.0.self_attn.qkv_proj.weight" in weights
    assert "model.layers.0.mlp.gate_up_proj.weight" in weights
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_generation_stops_at_the_end_of_a_turn(quick_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(quick_base)
    generation = json.loads((quick_base / "generation_config.json").read_text(encoding="utf-8"))
    tags = ["<|end|>", "<|assistant|>", "<|endoftext|>"]
    assert tokenizer.convert_tokens_to_ids(tags) == generation["eos_token_id"]


@pytest.mark.parametrize("settings", [DemoSettings(), QUICK])
def test_every_row_divides_into_k_quant_blocks(settings: DemoSettings) -> None:
    config = base_config(settings)
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0


def test_the_attention_factor_is_phi_35s(quick_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(quick_base)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(1.190238, abs=1e-6)


def test_even_a_quick_base_knows_more_than_token_frequencies(quick_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(quick_base)
    held_out, train = (
        tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
        for texts in (documents(1, 40, "held_out"), documents(0, 300))
    )
    model = AutoModelForCausalLM.from_pretrained(quick_base, dtype=torch.float32)
    loss = mean_loss(model, held_out, tokenizer.pad_token_id, 1024)
    unigram = unigram_loss(train, held_out, QUICK.vocab_size)
    assert loss < 0.75 * unigram
    # the control: untrained weights are worse than frequencies
    torch.manual_seed(0)
    untrained = type(model)(model.config).float()
    assert mean_loss(untrained, held_out, tokenizer.pad_token_id, 1024) > unigram


def test_the_second_call_finds_what_the_first_built(quick_base: Path) -> None:
    made = (quick_base / "model.safetensors").stat().st_mtime_ns
    assert quick_base == ensure_demo_base(quick_base.parent, QUICK)
    assert made == (quick_base / "model.safetensors").stat().st_mtime_ns


def test_a_build_repeats_bit_for_bit(tmp_path: Path) -> None:
    settings = replace(QUICK, document_count=60, conversation_count=60, steps=3)
    first, second = (ensure_demo_base(tmp_path / name, settings) for name in ("a", "b"))
    assert first.name == second.name
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    ensure_demo_base(tmp_path, replace(QUICK, document_count=60, conversation_count=60, steps=1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert threads == torch.get_num_threads()


@pytest.mark.parametrize("changed", ["corpus.py", "world.toml"])
def test_the_name_changes_with_source_and_data(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(base.__file__).parent
    for file in [*source.glob("*.py"), *source.glob("*.toml")]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = demo_base_hash(QUICK)
    monkeypatch.setattr(base, "__file__", str(tmp_path / "base.py"))
    assert demo_base_hash(QUICK) == before  # the control: the copy alone changes nothing
    with (tmp_path / changed).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert demo_base_hash(QUICK) != before


def test_the_name_changes_with_the_settings() -> None:
    assert demo_base_hash(QUICK) == demo_base_hash(DemoSettings.quick())
    assert demo_base_hash(QUICK) != demo_base_hash(replace(QUICK, seed=1))


class _Stops(progress.SilentReporter):
    """Raises Ctrl-C at the tenth step."""

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[progress.Task]:
        class Bar:
            steps = 0

            def advance(self, amount: float = 1) -> None:
                self.steps += 1
                if self.steps == 10:
                    raise KeyboardInterrupt

            def note(self, text: str) -> None:
                pass

        yield Bar()


def test_an_interrupted_build_leaves_nothing_at_its_name(tmp_path: Path) -> None:
    settings = replace(QUICK, document_count=60, conversation_count=60, steps=12)
    progress.install(_Stops())
    try:
        with pytest.raises(KeyboardInterrupt):
            ensure_demo_base(tmp_path, settings)
    finally:
        progress.install(progress.SilentReporter())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (ensure_demo_base(tmp_path, settings) / "model.safetensors").is_file()


def test_the_leftovers_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    settings = replace(QUICK, document_count=60, conversation_count=60, steps=1)
    left = tmp_path / f"phi-3-demo-{demo_base_hash(settings)}.building"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    folder = ensure_demo_base(tmp_path, settings)
    assert not left.exists()
    assert (folder / "model.safetensors").stat().st_size > 4


def test_batches_have_every_row_once_and_a_bounded_size() -> None:
    rows = [[7] * length for length in (5, 9, 2, 9, 30, 1, 4)]
    batches = length_batches(rows, 20)
    assert sorted(map(len, rows)) == sorted(len(row) for batch in batches for row in batch)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 20 for batch in batches)


def test_padding_is_not_trained_on() -> None:
    inputs, labels = _padded([[5, 6, 7], [8]], 0)
    assert inputs.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert labels.tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]


def test_the_unigram_loss_of_a_fair_coin_is_log_2() -> None:
    train = [[0, 1, 2] * 5000]
    assert unigram_loss(train, [[0, 1, 2]], 3) == pytest.approx(1.0986, abs=1e-3)
