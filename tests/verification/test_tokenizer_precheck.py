"""Tests that a tokenizer that the converter would refuse is refused before the training, after one check."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import UnsupportedModelError
from aegis.llama_cpp import PreparedTool, find_converter
from aegis.model.base import Base, load_tokenizer
from aegis.runs.run import Run
from aegis.stages.plan import plan
from aegis.stages.train import train
from aegis.training import inputs
from aegis.training.distributed.group import ProcessGroup
from aegis.verification import tokenizer_precheck
from aegis.verification.tokenizer_precheck import check_ids, converted_vocabulary, converting_vocabulary, our_ids
from tests.conftest import MakeRandom, Recorder

ASKED = "checking the tokenizer with llama.cpp's converter"


@pytest.fixture(scope="module")
def tree() -> Path:
    return find_converter()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    return tmp_path / "cache"


def ask(base: Base, tree: Path | None = None, *, keep: bool = True) -> None:
    with converted_vocabulary(base, tree, keep=keep):
        pass


def base_at(folder: Path) -> Base:
    return Base("someone/model", folder, None)


def test_an_accepted_tokenizer_is_checked_once(quick_base: Path, tree: Path, reporter: Recorder) -> None:
    for _ in range(2):
        ask(base_at(quick_base), tree)
    assert reporter.messages.count(ASKED) == 1


def test_what_a_killed_conversion_left_is_removed(quick_base: Path, tree: Path, cache: Path) -> None:
    """Only the GGUF and the lock are there at the end, as without it."""
    leftover = cache / "vocabularies" / ".building" / ".part-1618.gguf"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a file")
    ask(base_at(quick_base), tree)
    (made,) = (path for path in (cache / "vocabularies").iterdir() if path.name != ".lock")
    assert made.suffix == ".gguf"


def test_the_converter_runs_beside_the_reading_of_the_data(
    quick_base: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits here until the data is read: one after the other, the training would never begin."""
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    reading, waited = threading.Event(), []

    def patient(*arguments: Any, convert: Any = tokenizer_precheck.convert, **options: Any) -> None:
        waited.append(reading.wait(30))
        convert(*arguments, **options)

    def read(*arguments: Any, load: Any = inputs.load_training_set) -> Any:
        reading.set()
        return load(*arguments)

    monkeypatch.setattr(tokenizer_precheck, "convert", patient)
    monkeypatch.setattr(inputs, "load_training_set", read)
    (tmp_path / "data.jsonl").write_text('{"text": "春の花は桜です。"}\n' * 4, encoding="utf-8")
    settings = TrainConfig(
        base_model=str(quick_base), dataset=str(tmp_path / "data.jsonl"), device="cpu", keep_weight=0
    )
    inputs.TrainingInputs.make(settings, torch.device("cpu"), ProcessGroup())
    assert waited == [True]


def test_a_refusal_that_nobody_asked_for_is_raised_at_the_end(
    make_random: MakeRandom, tree: Path, knowing_tree: Path
) -> None:
    """A failure of the block itself comes first."""
    base = base_at(make_random("llama", pre="llama-bpe"))
    with pytest.raises(UnsupportedModelError), converting_vocabulary(base, tree):
        pass
    with pytest.raises(KeyError), converting_vocabulary(base, tree):
        raise KeyError


def test_a_failure_ends_the_converter_and_leaves_nothing(
    quick_base: Path, tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has begun to write, and would go on for seconds; and one that has not begun does not begin."""
    begun, begin, children = threading.Event(), PreparedTool.begin, []

    def noted(self: PreparedTool, part: Path, arguments: Any) -> Any:
        children.append(child := begin(self, part, arguments))
        part.write_bytes(b"half")
        begun.set()
        return child

    monkeypatch.setattr(PreparedTool, "begin", noted)
    with pytest.raises(KeyError), converting_vocabulary(base_at(quick_base), tree) as converting:  # noqa: PT012
        converting.begin()
        assert begun.wait(60)
        raise KeyError
    assert children[0].poll()  # it was killed
    assert not list(cache.rglob("*.gguf"))
    monkeypatch.setattr(PreparedTool, "begin", begin)
    with converting_vocabulary(base_at(quick_base), tree) as late:
        tool = late.prepared
    assert tool is not None
    with pytest.raises(InterruptedError):
        tool.begin(cache / "part.gguf", [])


def test_nothing_is_written_without_keep(quick_base: Path, tree: Path, cache: Path) -> None:
    ask(base_at(quick_base), tree, keep=False)
    assert not cache.exists()


def test_an_unknown_pre_tokenizer_is_refused(
    make_random: MakeRandom, tree: Path, knowing_tree: Path, cache: Path
) -> None:
    """Refused with the converter's reason; the control is a converter that knows it."""
    base = base_at(make_random("llama", pre="llama-bpe"))
    ask(base, knowing_tree)
    with pytest.raises(UnsupportedModelError, match=r"pre-tokenizer was not recognized"):
        ask(base, tree)
    assert len([path for path in (cache / "vocabularies").iterdir() if path.name != ".lock"]) == 1


def test_a_phi_3_without_its_sentencepiece_file_is_refused(quick_base: Path, tree: Path, tmp_path: Path) -> None:
    shutil.copytree(quick_base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").unlink()
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.model"):
        ask(base_at(tmp_path / "base"), tree)


def test_code_of_the_base_is_not_run(quick_base: Path, tree: Path, tmp_path: Path) -> None:
    """The converter would run it; it is not in the folder that it gets."""
    folder = tmp_path / "base"
    shutil.copytree(quick_base, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')\n", encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content["auto_map"] = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    ask(base_at(folder), tree)
    assert not (tmp_path / "sentinel").exists()


def test_a_missing_converter_is_reported_and_the_check_is_skipped(quick_base: Path, reporter: Recorder) -> None:
    """Nothing is fetched for a look ahead."""
    ask(base_at(quick_base))
    assert "export will show" in reporter.messages[0]


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


def replace_in_text(folder: Path, to: Path, *, pattern: str, content: str) -> Path:
    """Make transformers' half of a tokenizer read one word as another; llama.cpp reads its other half."""
    shutil.copytree(folder, to)
    document = json.loads((to / "tokenizer.json").read_text(encoding="utf-8"))
    replacing = {"type": "Replace", "pattern": {"String": pattern}, "content": content}
    inner = [document["normalizer"]] if document["normalizer"] else []
    document["normalizer"] = {"type": "Sequence", "normalizers": [replacing, *inner]}
    (to / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return to


def test_ids_that_differ_are_known_before_the_training(quick_base: Path, tree: Path, tmp_path: Path) -> None:
    """On the hard strings, and on the user's own rows alone; the control is the unchanged tokenizer."""
    everywhere = replace_in_text(quick_base, tmp_path / "everywhere", pattern="こ", content="そ")
    own = replace_in_text(quick_base, tmp_path / "own", pattern="xyzzy", content="plugh")
    for folder, texts, passes in (
        (quick_base, ["say xyzzy"], True),
        (everywhere, [], False),
        (own, ["say nothing"], True),
        (own, ["say xyzzy"], False),
    ):
        base = base_at(folder)
        with converted_vocabulary(base, tree) as vocabulary:
            assert vocabulary is not None
            if passes:
                check_ids(base, vocabulary, our_ids(base, load_tokenizer(folder), texts))
                continue
            with pytest.raises(UnsupportedModelError) as caught:
                check_ids(base, vocabulary, our_ids(base, load_tokenizer(folder), texts))
            assert caught.value.key == "vocabulary.other_ids"


def test_train_and_plan_compare_the_rows(
    quick_base: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tree))
    folder = replace_in_text(quick_base, tmp_path / "base", pattern="xyzzy", content="plugh")
    (tmp_path / "data.jsonl").write_text('{"text": "say xyzzy"}\n' * 4, encoding="utf-8")
    data = str(tmp_path / "data.jsonl")
    settings = TrainConfig(base_model=str(folder), dataset=data, device="cpu", keep_weight=0)
    run = Run(tmp_path / "run")
    for begin in (
        lambda: train(settings, run),
        lambda: plan(settings, MergeConfig(), ExportConfig(), VerifyConfig(), run),
    ):
        with pytest.raises(UnsupportedModelError) as caught:
            begin()
        assert caught.value.key == "vocabulary.other_ids"
    assert not run.checkpoints.exists()
