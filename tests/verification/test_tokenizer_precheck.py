"""What the converter would say at export is known before training, from its own mouth, and asked once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aegis.config.settings import ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.errors import UnsupportedModelError
from aegis.llama_cpp import find_tree
from aegis.model.base import Base
from aegis.runs.run import Run
from aegis.stages.plan import plan
from aegis.stages.train import train
from aegis.verification.tokenizer_precheck import check_vocabulary
from tests.conftest import MakeRandom, Recorder

ASKED = "checking the tokenizer with llama.cpp's converter"


@pytest.fixture(scope="module")
def tree() -> Path:
    return find_tree()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    return tmp_path / "cache"


def base_at(folder: Path) -> Base:
    return Base("someone/model", folder, None)


def test_a_tokenizer_that_is_taken_is_asked_about_once(quick_base: Path, tree: Path, reporter: Recorder) -> None:
    for _ in range(2):
        check_vocabulary(base_at(quick_base), tree)
    assert reporter.said.count(ASKED) == 1


def test_nothing_is_kept_if_it_may_not_be(quick_base: Path, tree: Path, cache: Path) -> None:
    check_vocabulary(base_at(quick_base), tree, keep=False)
    assert not cache.exists()


def test_an_unknown_pre_tokenizer(make_random: MakeRandom, tree: Path, knowing_tree: Path, cache: Path) -> None:
    """Refused with the converter's reason; the control is a converter that knows it."""
    base = base_at(make_random("llama", pre="llama-bpe"))
    check_vocabulary(base, knowing_tree)
    with pytest.raises(UnsupportedModelError, match=r"pre-tokenizer was not recognized"):
        check_vocabulary(base, tree)
    assert len(list((cache / "vocabularies").iterdir())) == 1


def test_a_phi_3_without_its_sentencepiece_file(quick_base: Path, tree: Path, tmp_path: Path) -> None:
    shutil.copytree(quick_base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").unlink()
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.model"):
        check_vocabulary(base_at(tmp_path / "base"), tree)


def test_code_of_the_base_is_not_run(quick_base: Path, tree: Path, tmp_path: Path) -> None:
    """The converter would run it; it is not in the folder that it gets."""
    folder = tmp_path / "base"
    shutil.copytree(quick_base, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')\n", encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content["auto_map"] = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    check_vocabulary(base_at(folder), tree)
    assert not (tmp_path / "sentinel").exists()


def test_without_a_converter_it_is_said(quick_base: Path, reporter: Recorder) -> None:
    """Nothing is fetched for a look ahead."""
    check_vocabulary(base_at(quick_base))
    assert "export will show" in reporter.said[0]


def test_train_and_plan_refuse_before_any_work(
    make_random: MakeRandom, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    (tmp_path / "data.jsonl").write_text('{"text": "春の花は桜です。"}\n' * 4, encoding="utf-8")
    settings = TrainConfig(
        base_model=str(make_random("qwen2", pre="qwen2")), dataset=str(tmp_path / "data.jsonl"), device="cpu"
    )
    run = Run(tmp_path / "run")
    with pytest.raises(UnsupportedModelError) as caught:
        train(settings, run)
    assert caught.value.key == "vocabulary.refused"
    assert not run.adapter.exists()
    assert not run.checkpoints.exists()
    with pytest.raises(UnsupportedModelError) as caught:
        plan(settings, MergeConfig(), ExportConfig(), VerifyConfig(), run)
    assert caught.value.key == "vocabulary.refused"
