"""Tests of a chat template given by the user: trained with, compared on resumption, and shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import first_rows
from aegis.errors import UsageError
from aegis.llama_cpp import GgufFile
from aegis.model.base import find_base, load_tokenizer
from aegis.model.trained_base import trained_base, with_template
from aegis.runs.run import Run
from aegis.stages.export import export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.train import train
from aegis.stages.verify import verify
from tests.trained import small_training, write_chats

pytestmark = pytest.mark.usefixtures("shared_cache", "unpainted")

OWN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n答: {{ m.content }}<|end|>\n"
    "{% else %}<|{{ m.role }}|>\n問: {{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n答: {% endif %}"
)


@pytest.fixture
def config(quick_base: Path, tmp_path: Path) -> TrainConfig:
    template = tmp_path / "own.jinja"
    template.write_text(OWN, encoding="utf-8")
    found = small_training(quick_base, write_chats(tmp_path / "data.jsonl"))
    return found.model_copy(update={"chat_template": template, "max_steps": 4, "keep_weight": 0})


def test_the_given_template_is_trained_with_and_shipped(config: TrainConfig, tmp_path: Path) -> None:
    """The control is the base's own template, which renders another text and is in none of the files."""
    run, base = Run(tmp_path / "run"), find_base(config.base_model)
    own = load_tokenizer(base.folder).chat_template
    assert own != OWN
    train(config, run)
    assert config.chat_template is not None
    config.chat_template.unlink()  # from here on the run has its own
    assert trained_base(run.adapter).chat_template == OWN
    merge(MergeInputs.from_run(run), run.merged, MergeConfig())
    assert load_tokenizer(run.merged).chat_template == OWN
    assert "chat_template" not in json.loads((run.merged / "tokenizer_config.json").read_text(encoding="utf-8"))
    export_gguf(run.merged, run.gguf, ExportConfig(quant=("Q8_0",)))
    with GgufFile(next(run.gguf.glob("*.gguf"))) as gguf:
        assert gguf.metadata["tokenizer.chat_template"] == OWN
    verdict = verify(run, VerifyConfig(tokens=128))
    assert verdict.failed_stage is None, verdict.failures


def test_rows_are_rendered_with_the_given_template(config: TrainConfig) -> None:
    base = find_base(config.base_model)
    tokenizer = with_template(base, config.chat_template).tokenizer()
    (row,) = first_rows(config, tokenizer, 1)
    assert "問: 春の花は何ですか。" in row.text
    trained = tokenizer.decode(row.example.ids[row.example.trained])
    assert "答えでござる" in trained
    assert "答: " not in trained
    (control,) = first_rows(config, base.tokenizer(), 1)
    assert "問: " not in control.text


def test_resumption_compares_the_templates_text_and_not_its_path(config: TrainConfig, tmp_path: Path) -> None:
    run, moved, other = Run(tmp_path / "run"), tmp_path / "moved.jinja", tmp_path / "other.jinja"
    moved.write_text(OWN, encoding="utf-8")
    other.write_text(OWN.replace("答: ", "A: "), encoding="utf-8")
    train(config, run)
    train(config.model_copy(update={"chat_template": moved}), run, reuse=True)
    for path in (other, None):
        with pytest.raises(UsageError) as caught:
            train(config.model_copy(update={"chat_template": path}), run, reuse=True)
        assert caught.value.key == "train.other_settings"
        assert "chat_template" in str(caught.value.values["changed"])


@pytest.mark.parametrize(
    ("content", "key"), [(None, "base.no_template"), (b"\xff\xfe", "base.no_template"), (b" \n", "base.empty_template")]
)
def test_an_unusable_template_file_is_refused(
    config: TrainConfig, tmp_path: Path, content: bytes | None, key: str
) -> None:
    path = tmp_path / "bad.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        train(config.model_copy(update={"chat_template": path}), Run(tmp_path / "run"))
    assert caught.value.key == key
