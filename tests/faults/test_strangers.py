"""Tests of an untrusted base with code and pickles wherever a program could run them: none of it runs."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.runs.run import Run
from aegis.training.checkpoint import list_steps
from tests.faults.harness import Laboratory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")
PICKLES = (
    "pytorch_model.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "adapter_model.bin",
)
AUTO_MAP = {
    "AutoConfig": "modeling_evil.EvilConfig",
    "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    "AutoTokenizer": ["modeling_evil.EvilTokenizer", "modeling_evil.EvilTokenizer"],
}


class Payload:
    """Creates its sentinel when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sentinel,)


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Path]:
    """Return the path of the file that a payload creates; it must not exist at the end."""
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists(), "a stranger's code was run"


@pytest.fixture
def base(laboratory: Laboratory, tmp_path: Path, sentinel: Path) -> Path:
    """Return the tiny base with code and pickles beside it, and a config that refers to them."""
    folder = tmp_path / "base"
    shutil.copytree(laboratory.base, folder)
    code = f"from pathlib import Path\nPath({str(sentinel)!r}).touch()\n"
    for name in ("modeling_evil.py", "configuration_phi3.py", "sitecustomize.py", "conftest.py", "gguf.py"):
        (folder / name).write_text(code, encoding="utf-8")
    plant_pickles(folder, sentinel)
    edit(folder / "config.json", auto_map=AUTO_MAP, trust_remote_code=True)
    edit(folder / "tokenizer_config.json", auto_map=AUTO_MAP, trust_remote_code=True)
    return folder


def plant_pickles(folder: Path, sentinel: Path) -> None:
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Payload(sentinel)))


def edit(path: Path, **changes: object) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | changes), encoding="utf-8")


def test_the_hostile_code_would_run_if_it_were_loaded(tmp_path: Path) -> None:
    """The control: unpickling runs it."""
    plant_pickles(tmp_path, tmp_path / "made")
    pickle.loads((tmp_path / PICKLES[0]).read_bytes())
    assert (tmp_path / "made").exists()


def test_the_pipeline_runs_no_hostile_code(laboratory: Laboratory, base: Path, tmp_path: Path) -> None:
    """Phi-3.5 and Borea ship auto_map and *.py: such a base is used through the native class, and nothing is copied."""
    ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments("run"), "--base-model", base)
    assert ended.code == 0, ended.output
    run = Run(tmp_path / "run")
    for folder in (run.adapter, run.merged, run.gguf):
        assert [path.name for path in folder.rglob("*") if path.suffix in (".py", ".bin", ".pt", ".pth")] == []
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((run.merged / name).read_text(encoding="utf-8"))


def test_pickles_in_a_run_are_never_loaded(laboratory: Laboratory, tmp_path: Path, sentinel: Path) -> None:
    """Pickles in the resumed checkpoint, adapter, merged and gguf are never read, and verify names them."""
    from tests.faults.forked import strike

    long = ("--max-steps", "40", "--save-steps", "1")
    stopped = laboratory.forked.aegis(tmp_path, *laboratory.arguments("train"), *long, blows=[strike(9, rows=2)])
    assert stopped.code == -9
    run = Run(tmp_path / "run")
    for folder in list_steps(run.checkpoints):
        plant_pickles(folder, sentinel)
    for job, folder in (("train", run.adapter), ("merge", run.merged), ("export", run.gguf)):
        ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments(job), *(long if job == "train" else ()))
        assert ended.code == 0, ended.output
        plant_pickles(folder, sentinel)
    ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments("verify"))
    assert (ended.code, "adapter_model.bin must not exist" in ended.output) == (5, True), ended.output


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ({"model_type": "evil", "architectures": ["EvilForCausalLM"]}, "has no class for it"),
        ({"model_type": "phi3", "architectures": ["EvilModel"]}, "not a decoder language model"),
    ],
)
def test_hostile_bases_are_refused_before_anything_is_loaded(
    laboratory: Laboratory, base: Path, tmp_path: Path, changes: dict[str, Any], shown: str
) -> None:
    edit(base / "config.json", **changes)
    ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments("train"), "--base-model", base)
    assert (ended.code, shown in ended.output, "Traceback" in ended.output) == (5, True, False), ended.output
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_class_that_needs_code_is_refused(laboratory: Laboratory, base: Path, tmp_path: Path) -> None:
    """tokenizer.json is used if transformers can do without the class, else the base is refused."""
    edit(base / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments("run"), "--base-model", base)
    assert ended.code in (0, 5), ended.output
    assert "Traceback" not in ended.output


def test_weights_in_pickles_only_are_refused(laboratory: Laboratory, base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments("train"), "--base-model", base)
    assert (ended.code, "a pickle can run code" in ended.output) == (5, True), ended.output


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_the_base_is_neither_read_nor_written(
    laboratory: Laboratory, base: Path, tmp_path: Path, link: str
) -> None:
    """The linked file would otherwise be in merged/, in its manifest and on the Hub."""
    precious = tmp_path / "precious"
    precious.write_text('{"precious": true}', encoding="utf-8")
    (base / "added_tokens.json").unlink()
    (base / "added_tokens.json").symlink_to(precious if link == "file" else tmp_path)
    ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments("train"), "--base-model", base)
    assert (ended.code, "is a link out of the model folder" in ended.output) == (5, True), ended.output
    assert not (tmp_path / "run").exists()
    assert precious.read_text(encoding="utf-8") == '{"precious": true}'
