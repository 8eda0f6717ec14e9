"""Finished runs of three families, built once per session, and copies to break."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from aegis.config.settings import ExportConfig, MergeConfig
from aegis.config.train_settings import TrainConfig
from aegis.llama_cpp import convert
from aegis.runs.facts import ExportFacts
from aegis.runs.manifest import MANIFEST, FileRecord, digest, file_sha256, read_manifest
from aegis.runs.run import Run
from aegis.stages.export import export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.train import train
from aegis.training.checkpoint import list_steps
from aegis.verification.run_precheck import Later
from tests.gguf_edit import GgufEdit

SHARD = "model.safetensors"
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Finished:
    """A run with every stage finished and the f16 file kept.

    Attributes:
        family: "phi3" (SentencePiece, LongRoPE), "qwen2" (byte-level BPE, a template with tools) or "llama" (tied).
        tree: the converter that supports its tokenizer.
    """

    family: str
    run: Run
    base: Path
    tree: Path
    scratch: Path

    @classmethod
    def build(cls, family: str, base: Path, tree: Path, scratch: Path) -> Finished:
        """Train for seconds, merge and export."""
        run = Run(scratch / "run")
        config = TrainConfig(
            base_model=str(base),
            device="cpu",
            max_steps=8,
            warmup_steps=1,
            annealing_steps=5,
            batch_size=4,
            max_length=64,
            learning_rate=3e-3,
            save_steps=4,
            keep_windows=8,
        )
        train(config, run, later=Later(export=ExportConfig(llama_cpp_dir=tree)))
        merge(MergeInputs.from_run(run), run.merged, MergeConfig())
        export_gguf(run.merged, run.gguf, ExportConfig(keep_f16=True, llama_cpp_dir=tree))
        return cls(family, run, base, tree, scratch)

    def copy(self, to: Path) -> Run:
        """Return a copy of hard links to break; a changed file must be written as a new one."""
        shutil.copytree(self.run.root, to, copy_function=os.link)
        return Run(to)

    @cached_property
    def f16_of_the_base(self) -> Path:
        """Return the base converted without adapter and soul, and with a separate head."""
        folder = self.scratch / "plain"
        shutil.copytree(self.run.merged, folder)
        tensors = load_file(self.base / SHARD)
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())
        save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / SHARD, {"format": "pt"})
        return self._converted(folder)

    @cached_property
    def f16_of_an_earlier_step(self) -> Path:
        """Return the f16 file of a checkpoint in the middle of the training."""
        folder = self.scratch / "earlier"
        merge(MergeInputs(str(self.base), earlier_step(self.run)), folder, MergeConfig())
        return self._converted(folder)

    def _converted(self, folder: Path) -> Path:
        out = folder.with_suffix(".gguf")
        convert(folder, out, model_name=ExportFacts.read(self.run.gguf).name, tree=self.tree)
        return out


def earlier_step(run: Run) -> Path:
    """Return the checkpoint in the middle of the training."""
    return list_steps(run.checkpoints)[-1]


def put(path: Path, content: bytes | str) -> None:
    """Write a file as a new one, so that the run it was linked from keeps its own."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def reseal(directory: Path, **inputs: str) -> None:
    """Make the manifest fit the current files, so that hashes do not show the defect."""
    path = directory / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    document["files"] = {
        file.name: vars(FileRecord(file.stat().st_size, file_sha256(file)))
        for file in sorted(directory.iterdir())
        if file.is_file() and file.name != MANIFEST
    }
    document["inputs"] |= inputs
    put(path, json.dumps(document))


def reseal_merged(run: Run) -> None:
    """The same for the merged folder, whose hashes the GGUF's manifest has."""
    reseal(run.merged)
    reseal(run.gguf, model=digest({name: file.sha256 for name, file in read_manifest(run.merged).files.items()}))


def quantized_path(run: Run) -> Path:
    return next(run.gguf.glob("*-Q4_K_M.gguf"))


def f16_path(run: Run) -> Path:
    return next(run.gguf.glob("*-F16.gguf"))


def edit(path: Path, change: Callable[[GgufEdit], None]) -> None:
    """Change a GGUF, and reseal."""
    parts = GgufEdit(path)
    change(parts)
    parts.save(path)
    reseal(path.parent)


def edit_tensors(run: Run, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the merged tensors, and reseal."""
    path = run.merged / SHARD
    tensors = load_file(path)
    change(tensors)
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.unlink()
    save_file(content, path, {"format": "pt"})
    reseal_merged(run)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    put(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Defect:
    """A defect: its name, the stage that must be named, the function that makes it, and the families with it."""

    name: str
    stage: str
    plant: Callable[[Finished, Run], None]
    families: tuple[str, ...] = ("phi3", "qwen2", "llama")
