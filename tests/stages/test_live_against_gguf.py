"""Tests of every proven family: the live adapter and soul against the f16 GGUF in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aegis.config.settings import ExportConfig, MergeConfig
from aegis.errors import IntegrityError, ToolError
from aegis.llama_cpp import GgufFile, Runtime, convert
from aegis.messages import phrase
from aegis.model.base import load_tokenizer, read_config
from aegis.model.families import PROVEN, REFUSED, HeadKind, rope_of, unproven_parts
from aegis.model.shards import HEAD, HEAD_BIAS, ShardSet
from aegis.model.vocabulary import vocabulary_of
from aegis.soul.fold import fold_head
from aegis.stages.export import export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.verification import divergence, token_parity
from aegis.verification.divergence import Recording
from aegis.verification.findings import Divergence
from aegis.verification.gguf_checks import check_f16
from tests.byte_level import Pre
from tests.conftest import MakeRandom
from tests.trained import MakeTrained, Trained


@dataclass(frozen=True)
class Case:
    """A family, its LM head, its tokenizer (`pre`: byte-level, else SentencePiece), and its shape."""

    model_type: str
    head: HeadKind
    pre: Pre | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def vocabulary(self) -> str | None:
        """Return the kind of tokenizer whose ids are compared; the quick base's only fits Phi-3."""
        return "byte-level BPE" if self.pre else "SentencePiece" if self.model_type == "phi3" else None

    def __str__(self) -> str:
        return f"{self.model_type}, head {self.head}, {self.pre or 'sentencepiece'}"


# one layer of full attention, which has its own rope base, among six of the sliding kind
GEMMA = {"num_hidden_layers": 6, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 32}
# so short a context that the scaled part of the rotary embedding is within the tokens compared
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = (
    Case("phi3", "own"),
    Case("llama", "own"),
    Case("llama", "tied", "llama-bpe"),
    Case("llama", "own", "llama-bpe", {"rope_parameters": LLAMA3_ROPE}),
    Case("mistral", "own", settings={"sliding_window": None}),
    Case("qwen2", "own"),
    Case("qwen2", "tied", "qwen2"),
    Case("qwen3", "own", "qwen2", {"head_dim": 96}),
    Case("qwen3", "tied"),
    Case("gemma3_text", "tied", settings=GEMMA),
    Case("smollm3", "tied", "llama-bpe", {"num_hidden_layers": 4}),  # the fourth is the one without RoPE
    Case("phi", "with bias", "phi-2", {"num_key_value_heads": 4, "intermediate_size": 1024}),
)


@pytest.fixture
def base(quick_base: Path, make_random: MakeRandom, case: Case) -> Path:
    if case.model_type == "phi3":
        return quick_base
    return make_random(case.model_type, pre=case.pre, tie_word_embeddings=case.head == "tied", **case.settings)


def sequences(trained: Trained) -> list[list[int]]:
    draw = torch.randint(3, trained.model.config.vocab_size - 70, (3, 80), generator=torch.Generator().manual_seed(2))
    return [row.tolist() for row in draw]


def live(trained: Trained, work: Path) -> Recording:
    outputs = (trained.logits(torch.tensor([row]))[0].numpy() for row in sequences(trained))
    return divergence.record(work / "live.npy", outputs, sequences(trained))


def against(reference: Recording, trained: Trained, gguf: Path) -> Divergence:
    """Run a GGUF in llama.cpp, and compare it with the live model."""

    def outputs(runtime: Runtime) -> Iterator[NDArray[np.float32]]:
        for row in sequences(trained):
            yield runtime.logits(row)

    with Runtime(gguf, n_ctx=128, threads=1, logits=True) as runtime:
        recording = divergence.record(gguf.with_suffix(".npy"), outputs(runtime), sequences(trained))
    return divergence.compare(reference, recording)


def replaced(gguf: Path, name: str, values: NDArray[Any]) -> Path:
    """Return a copy of the file with other values of the same type in one tensor."""
    with GgufFile(gguf) as file:
        info = file.tensors[name]
    data = bytearray(gguf.read_bytes())
    assert values.nbytes == info.size_bytes
    data[info.offset_bytes : info.offset_bytes + info.size_bytes] = values.tobytes()
    copy = gguf.with_name("other.gguf")
    copy.write_bytes(data)
    return copy


def test_every_proven_family_has_a_test() -> None:
    """With each LM head that the README's table claims; tests/data/test_real_tokenizers.py has its tokenizers."""
    heads = {(case.model_type, case.head) for case in CASES}
    assert heads == {(model_type, head) for model_type, family in PROVEN.items() for head in family.heads}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_proven_family_is_proven_with_this_rope(base: Path, case: Case) -> None:
    """The table's kinds of rotary embedding are those of the cases."""
    config = read_config(base)
    assert rope_of(config) in PROVEN[case.model_type].ropes
    assert unproven_parts(config, ShardSet.open(base).entries, vocabulary_of(base)) in (
        {},
        {"tokenizer": "SentencePiece"},
    )
    scaled = case.settings.get("rope_parameters") or case.model_type == "phi3"
    assert (rope_of(config) not in ("default", "default of a part")) == bool(scaled)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_f16_gguf_agrees_with_the_live_soul(
    tmp_path: Path, base: Path, make_trained: MakeTrained, knowing_tree: Path, case: Case
) -> None:
    """KL ≤ 1e-4, top-1 ≥ 99 %; an unfolded head, Rᵀ, a norm without counter-scale and a lost bias miss by far."""
    trained = make_trained(base)
    assert trained.model.peft_config["default"].target_modules == set(PROVEN[case.model_type].targets)
    reference = live(trained, tmp_path)
    report = merge(MergeInputs(str(base), trained.adapter), tmp_path / "merged", MergeConfig())
    assert report.untied == (case.head == "tied")
    gguf = tmp_path / "f16.gguf"
    # llama.cpp reads Phi-3 off the name, and looks for its tokens then
    convert(tmp_path / "merged", gguf, model_name="phi-3" if case.model_type == "phi3" else "tiny", tree=knowing_tree)
    merged, tokenizer = ShardSet.open(tmp_path / "merged"), load_tokenizer(base)
    check_f16(gguf, merged, read_config(tmp_path / "merged"), tokenizer)
    found = against(reference, trained, gguf)
    assert found.mean_kl <= 1e-4, found
    assert found.top1 >= 0.99, found

    source = trained.model.get_output_embeddings().weight.detach()
    turned = fold_head(source, trained.soul.rotation().detach().mT, report.gate)
    wrong = [("output.weight", head.half().numpy()) for head in (source, turned)]
    with GgufFile(gguf) as file:
        unscaled = file.tensor("output_norm.weight").astype(np.float32) * np.float32(1 + report.gate)
    missed = against(reference, trained, replaced(gguf, "output_norm.weight", unscaled))
    assert missed.mean_kl > 100 * 1e-4, missed
    assert (HEAD_BIAS in merged.entries) == (case.head == "with bias")
    if case.head == "with bias":
        wrong.append(("output.bias", np.zeros(merged.entries[HEAD_BIAS].shape, np.float32)))
    for name, values in wrong:
        missed = against(reference, trained, replaced(gguf, name, values))
        assert missed.mean_kl > 100 * 1e-4, (name, missed)
        with pytest.raises(IntegrityError, match=f"{name} (is not|differs from) lm_head"):
            check_f16(gguf.with_name("other.gguf"), merged, read_config(tmp_path / "merged"), tokenizer)
    if case.vocabulary:
        with Runtime(gguf, vocab_only=True) as runtime:
            assert token_parity.compare_tokens(token_parity.TokenIds.of(tokenizer), runtime).wrong == ()


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
def test_the_converter_drops_a_separate_gemma_head(tmp_path: Path, make_random: MakeRandom, model_type: str) -> None:
    """The converter succeeds and leaves the separate head out, as the reason says."""
    assert "drops its lm_head.weight" in phrase(REFUSED[model_type])
    model = make_random(model_type, tie_word_embeddings=False, head_dim=64)
    convert(model, tmp_path / "f16.gguf", model_name="tiny")
    assert HEAD in ShardSet.open(model).entries
    with GgufFile(tmp_path / "f16.gguf") as gguf:
        assert "output.weight" not in gguf.tensors


@pytest.mark.parametrize("model_type", ["cohere", "cohere2"])
def test_the_converter_refuses_a_separate_cohere_head(tmp_path: Path, make_random: MakeRandom, model_type: str) -> None:
    assert "no place for a separate LM head" in phrase(REFUSED[model_type])
    model = make_random(model_type, tie_word_embeddings=False)
    assert HEAD in ShardSet.open(model).entries
    with pytest.raises(ToolError, match=r"Can not map tensor 'lm_head\.weight'"):
        convert(model, tmp_path / "f16.gguf", model_name="tiny")


def test_a_gemma_whose_embeddings_are_cut_is_not_exported(
    tmp_path: Path, make_random: MakeRandom, knowing_tree: Path
) -> None:
    """Without tokenizer.model the converter leaves out the embeddings' unused rows, and llama.cpp cannot load that."""
    model = make_random("gemma3_text", pre="qwen2", tie_word_embeddings=False, **GEMMA)
    with pytest.raises(IntegrityError, match=r"token_embd\.weight has \d+ rows for \d+ tokens: the converter cut it"):
        export_gguf(model, tmp_path / "gguf", ExportConfig(quant=("F16",), llama_cpp_dir=knowing_tree))
    assert not (tmp_path / "gguf").exists()
