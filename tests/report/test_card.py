"""Tests of the model card: valid metadata, the model's parts, and verify's result if there is one."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from aegis.messages import Bilingual, bilingual
from aegis.report.card import CardFile, gguf_card, merged_card, with_answers, with_verdict
from aegis.runs.facts import Provenance

ORIGIN = Provenance(
    base="owner/Base-Jp",
    on_hub=True,
    revision="0123abc",
    metadata={"license": "mit", "language": ["ja", "no"]},
    data={"dataset": "mine.jsonl", "on_hub": False, "train_rows": 90, "heldout_rows": 10, "content_sha256": "d" * 64},
    settings={"max_steps": 500, "lora_r": 16},
    soul={"alpha": 1.618, "gate": 0.8345, "rotation": "so8"},
)
FILES = [CardFile("Base-Q4_K_M.gguf", 123, "a" * 64), CardFile("Base-Q8_0.gguf", 456, "b" * 64)]
REPORT: dict[str, Any] = {
    "ok": True,
    "failed_stage": None,
    "tokens": 2048,
    "steps": [
        {
            "name": "wide → merged",
            "max_kl": 1e-4,
            "found": {"mean_kl": 1.1e-7, "p99_kl": 9e-7, "max_kl": 2e-6, "top1": 0.9995, "max_delta": 0.0082},
        },
        {
            "name": "f16 → Q4_K_M",
            "max_kl": None,
            "found": {"mean_kl": 0.016, "p99_kl": 0.17, "max_kl": 0.73, "top1": 0.9634, "max_delta": 3.6},
        },
    ],
    "perplexity": {"trained": 5.073, "Q4_K_M": 5.112},
    "retained": [
        {"text": "other", "kl": 0.31, "base": 1.914, "result": 3.572, "base_tempered": 1.914, "result_tempered": 3.361}
    ],
    "summary": {"english": "the result has moved away from the base"},
}


def card(**changed: Any) -> str:
    return gguf_card(
        ORIGIN.model_copy(update=changed), "Base-AEGIS", FILES, "0.1.0", context_tokens=4096, long_rope=True
    )


def test_the_cards_metadata_is_valid() -> None:
    """Read back by the Hub's own library; "no" stays Norwegian, and nothing is empty."""
    data = ModelCard(card()).data.to_dict()
    assert data == {
        "base_model": "owner/Base-Jp",
        "base_model_relation": "finetune",
        "language": ["ja", "no"],
        "library_name": "gguf",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["aegis", "lora", "gguf"],
    }
    text = merged_card(ORIGIN, "Base-AEGIS", FILES, "0.1.0")
    assert ModelCard(text).data.library_name == "transformers"


def test_the_card_describes_the_model() -> None:
    text = card()
    for shown in (
        *("[owner/Base-Jp](https://huggingface.co/owner/Base-Jp)", "`0123abc`", "by owner", "`mit`"),
        *("α = 1.618", "g = 0.8345", "mine.jsonl", "90 rows", "d" * 64, "lora_r = 16", "max_steps = 500"),
        *("a" * 64, "b" * 64, "-c 4096", "ollama create base-aegis -f Modelfile", "aegis chat --gguf"),
    ):
        assert shown in text, shown


def test_the_card_advises_a_context_only_where_it_matters() -> None:
    short = gguf_card(ORIGIN, "Base", FILES, "0.1.0", context_tokens=2048, long_rope=False)
    assert "long rope" in card()
    assert "long rope" not in short
    assert "-c 2048" in short


@pytest.mark.parametrize("report", [REPORT, {**REPORT, "retained": [], "summary": None}])
def test_the_verdict_of_verify_replaces_the_placeholder(report: dict[str, Any]) -> None:
    """Before, it says that nothing was verified; after, the table; twice is once."""
    assert "before `aegis verify`" in card()
    text = with_verdict(card(), report)
    assert "before `aegis verify`" not in text
    assert "| wide → merged | 1.10e-07 | 9.00e-07 | 2.00e-06 | 99.95% | 0.0082 | 1e-04 |" in text
    assert "proven on 2048 tokens" in text
    assert ("On text nobody trained on: base 1.914, this model 3.572" in text) == bool(report["retained"])
    assert ("The result has moved away from the base." in text) == (report["summary"] is not None)
    assert with_verdict(text, report) == text
    assert ModelCard(text).data.to_dict() == ModelCard(card()).data.to_dict()


def test_a_failed_verification_is_not_hidden() -> None:
    text = with_verdict(card(), {**REPORT, "ok": False, "failed_stage": "merge"})
    assert "NOT proven: the fault is in merge" in text


def test_a_card_can_be_written_with_few_facts() -> None:
    """A local folder without a licence or a training: the card says so and is valid."""
    text = merged_card(Provenance(base="mine"), "mine-AEGIS", FILES, "0.1.0")
    data = ModelCard(text).data.to_dict()
    assert not {"base_model", "license", "datasets"} & set(data)
    assert "names no licence" in text
    assert "## Training" not in text


def test_a_hub_data_set_is_named() -> None:
    data = {**ORIGIN.data, "dataset": "owner/rows", "on_hub": True}
    assert ModelCard(card(data=data)).data.datasets == ["owner/rows"]


def test_the_card_shows_the_prompt_and_how_to_run_the_hubs_files() -> None:
    """Between fences that the prompt cannot close; a setting that is not given has no line."""
    changed = ORIGIN.model_copy(update={"settings": {"max_steps": 500, "soul_learning_rate": None, "lora_targets": []}})
    text = gguf_card(
        changed, "n", FILES, "0.1.0", context_tokens=4096, long_rope=False, prompt="<|user|>\n```QUESTION<|end|>"
    )
    assert "ollama run hf.co/OWNER/NAME:Q4_K_M" in text
    assert "\n````\n<|user|>\n```QUESTION<|end|>\n````\n" in text
    assert "max_steps = 500" in text
    assert "None" not in text
    assert "lora_targets" not in text
    assert "Prompt format" not in card()


def test_sample_answers_are_before_the_verdict() -> None:
    """As plain text: a model's answer is not Markdown. Without any, the card is unchanged."""
    text = with_answers(with_verdict(card(), REPORT), ["Who?"], [("base", ["A *dog*"]), ("this model", ["I\nam <b>"])])
    assert "> **Who?**  \n> base: A \\*dog\\*  \n> this model: I am \\<b\\>  " in text
    assert text.index("## Sample answers") < text.index("## Verified")
    assert with_answers(card(), [], []) == card()


def test_a_card_is_in_japanese_too_where_the_base_speaks_it() -> None:
    """Beside the English text, with verify's result; the control is a base of other languages."""
    record = bilingual("retention.as_well", text="X").recorded()
    summed = {**REPORT, "summary": record}
    for languages, there in ((["ja", "no"], True), ("ja", True), (["en", "jav"], False), ("japanese", False)):
        changed = card(metadata={"license": "mit", "language": languages})
        text = with_verdict(with_answers(changed, ["Who?"], [("base", ["me"])]), summed)
        for phrase in ("## 日本語", "（作者 owner）", "学習 90 行", "Q4_K_M` で実行", "2048 トークンで検証しました"):
            assert (phrase in text) == there, (languages, phrase)
        assert (Bilingual.from_record(record).in_language("ja") + "。" in text) == there
        assert "What was trained is what runs" in text
        assert with_verdict(text, summed) == text
    assert "検証に不合格です。原因は merge" in with_verdict(card(), {**REPORT, "ok": False, "failed_stage": "merge"})
    assert "AEGIS は必要ありません" in merged_card(ORIGIN, "n", FILES, "0.1.0")
