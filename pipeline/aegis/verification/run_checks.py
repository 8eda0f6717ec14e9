"""What can be proved of a run without running a model: each file is the one that was published, each part is ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis.errors import AegisError, IntegrityError
from aegis.llama_cpp import GgufFile
from aegis.merging.plan import SLAB_BYTES, MergePlan
from aegis.messages import Bilingual, bilingual
from aegis.model.adapter import WEIGHTS
from aegis.model.base import TOKENIZER_FILES, Base, read_config
from aegis.model.shards import HEAD, HEAD_BIAS, ShardSet
from aegis.runs.manifest import Manifest, digest, file_sha256, verify_directory
from aegis.runs.run import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.verification.gguf_checks import check_f16, check_quantized

_EDITED = frozenset({"tie_word_embeddings", "auto_map", "quantization_config", "dtype", "torch_dtype"})
"""The keys of config.json that merge changes or leaves out."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and the stage that is guilty if it does not hold."""

    name: Bilingual
    stage: str
    ok: bool
    detail: Bilingual

    def as_json(self) -> dict[str, Any]:
        """As a report has it."""
        return {
            "name": self.name.recorded(),
            "stage": self.stage,
            "ok": self.ok,
            "detail": self.detail.recorded(),
        }


class Checks:
    """A list of checks under way; a check that raises an `AegisError` has failed, with the error for its detail."""

    def __init__(self) -> None:
        self.done: list[Check] = []

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.done)

    @contextmanager
    def check(self, name: Bilingual, stage: str) -> Iterator[Callable[[Bilingual], None]]:
        """Run the block as one check; it may give a detail, and raises to fail."""
        details: list[Bilingual] = []
        try:
            yield details.append
        except AegisError as error:
            self.done.append(Check(name, stage, False, error.text))
        else:
            self.done.append(Check(name, stage, True, Bilingual.joined("; ", details)))


def check_published(checks: Checks, run: Run) -> None:
    """Hash every published file, and follow the chain: each stage must have worked on what the one before published."""
    manifests: dict[str, Manifest] = {}
    for stage, directory in (("train", run.adapter), ("merge", run.merged), ("convert", run.gguf)):
        with checks.check(bilingual("structure.files", folder=directory.name), stage) as tell:
            manifests[stage] = verify_directory(directory)
            tell(bilingual("structure.files_published", count=len(manifests[stage].files)))
    if "merge" in manifests and "train" in manifests:
        with checks.check(bilingual("structure.merged_from"), "merge"):
            inputs = manifests["merge"].inputs
            for name, path in (("adapter", run.adapter / WEIGHTS), ("soul", run.adapter / SOUL_FILE)):
                if inputs.get(name) != file_sha256(path):
                    raise IntegrityError("structure.other_input", merged=run.merged, name=name, path=path)
            if inputs.get("base") != manifests["train"].inputs.get("base"):
                raise IntegrityError("structure.other_base", merged=run.merged)
    if "convert" in manifests and "merge" in manifests:
        with checks.check(bilingual("structure.converted_from"), "convert"):
            known = {name: record.sha256 for name, record in manifests["merge"].files.items()}
            if manifests["convert"].inputs.get("model") != digest(known):
                raise IntegrityError("structure.other_folder", gguf=run.gguf, merged=run.merged)


def check_head(checks: Checks, plan: MergePlan, merged: Path) -> None:
    """Compare the merged LM head with W(I + gR) worked out again from base, adapter and soul."""
    with checks.check(bilingual("structure.head"), "merge") as tell:
        stored = ShardSet.open(merged).entries.get(HEAD)
        if stored is None or stored.shape != plan.head.shape:
            raise IntegrityError("structure.no_head", merged=merged, head=HEAD, shape=plan.head.shape)
        # one more or less in the last place: a product may be summed in another order on another machine
        step = torch.finfo(stored.dtype).eps
        for start, stop, rows in plan.slabs(HEAD, plan.head):
            wanted, found = rows.float(), stored.read(start, stop).float()
            if not torch.allclose(found, wanted, rtol=2 * step, atol=1e-7):
                worst = ((found - wanted).norm() / wanted.norm()).item()
                raise IntegrityError("structure.head_off", head=HEAD, merged=merged, worst=worst)
        bias, base_bias = (shards.entries.get(HEAD_BIAS) for shards in (ShardSet.open(merged), plan.base.shards))
        if (bias is None) != (base_bias is None) or (
            bias is not None and base_bias is not None and not torch.equal(bias.read(), base_bias.read().to(bias.dtype))
        ):
            raise IntegrityError("structure.other_bias", head_bias=HEAD_BIAS, merged=merged)
        tell(bilingual("structure.gate", gate=plan.soul.gate, kind=plan.soul.kind))
    check_stock(checks, merged)


def check_stock(checks: Checks, merged: Path) -> None:
    """A folder that any program reads rightly: the head is its own, and nothing in it is ours or code."""
    with checks.check(bilingual("structure.stock"), "merge"):
        config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
        if config.get("tie_word_embeddings") is not False:
            raise IntegrityError("structure.tied", merged=merged)
        if "auto_map" in config or list(merged.glob("*.py")):
            raise IntegrityError("structure.code", merged=merged)
        if odd := [name for name in ShardSet.open(merged).entries if "soul" in name or "lora" in name]:
            raise IntegrityError("structure.foreign_tensors", merged=merged, odd=odd[0])


def check_sidecars(checks: Checks, base: Base, merged: Path) -> None:
    """The tokenizer's files are the base's, and so is the config but for what merging changes."""
    with checks.check(bilingual("structure.companions"), "merge") as tell:
        files = [name for name in TOKENIZER_FILES if (base.folder / name).is_file() or (merged / name).is_file()]
        for name in files:
            if _content(base.folder / name) != _content(merged / name):
                raise IntegrityError("structure.not_the_bases", path=merged / name)
        before, after = (
            {key: value for key, value in read_config(folder).items() if key not in _EDITED}
            for folder in (base.folder, merged)
        )
        if odd := sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)):
            raise IntegrityError("structure.other_config", merged=merged, odd=", ".join(odd))
        tell(bilingual("structure.tokenizer_files", count=len(files)))


def _content(path: Path) -> object:
    """A file's bytes, or of tokenizer_config.json what it says but for code; None where there is no file."""
    if not path.is_file():
        return None
    if path.name != "tokenizer_config.json":
        return path.read_bytes()
    try:
        return {key: value for key, value in json.loads(path.read_bytes()).items() if key != "auto_map"}
    except (ValueError, AttributeError) as error:
        raise IntegrityError("structure.not_an_object", path=path, error=str(error)) from None


def check_finite(checks: Checks, merged: Path) -> None:
    """Look at every value of the merged shards."""
    with checks.check(bilingual("structure.finite"), "merge") as tell:
        entries = ShardSet.open(merged).entries
        for entry in entries.values():
            for start, stop in entry.slabs(SLAB_BYTES):
                rows = entry.read(start, stop)
                if rows.is_floating_point() and not torch.isfinite(rows).all():
                    raise IntegrityError("structure.holds_nan_inf", entry_name=entry.name)
        tell(bilingual("structure.tensors", count=len(entries)))


def check_converted(checks: Checks, f16: Path, merged: Path, config: dict[str, Any], tokenizer: Any) -> None:
    """The f16 GGUF against the folder: head, template, add_bos, rope tensors, name, vocabulary, special tokens."""
    with checks.check(bilingual("structure.converted"), "convert"):
        check_f16(f16, ShardSet.open(merged), config, tokenizer)
    with checks.check(bilingual("structure.vocabulary"), "convert") as tell, GgufFile(f16) as gguf:
        tokens = gguf.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list):
            raise IntegrityError("structure.no_vocabulary", f16_name=f16.name)
        for text, token in sorted(tokenizer.get_added_vocab().items(), key=lambda pair: pair[1]):
            if token >= len(tokens) or tokens[token] != text:
                found = tokens[token] if token < len(tokens) else bilingual("structure.nothing")
                raise IntegrityError("structure.other_piece", token=token, found=found, f16_name=f16.name, text=text)
        for key, wanted in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
            found_id = gguf.metadata.get(f"tokenizer.ggml.{key}_token_id")
            if wanted is not None and found_id != wanted:
                raise IntegrityError(
                    "structure.other_special_token", key=key, found_id=found_id, f16_name=f16.name, wanted=wanted
                )
        tell(bilingual("structure.tokens", count=len(tokens)))


def check_types(checks: Checks, path: Path, quant: str, head_quant: str | None) -> None:
    """The quantization type of every tensor, one a line behind the first, and how many fell back."""
    with checks.check(bilingual("structure.types", name=path.name), "quantize") as tell:
        fallbacks = check_quantized(path, quant, head_quant)
        with GgufFile(path) as gguf:
            types = Counter(info.type for info in gguf.tensors.values())
            each = [f"{info.name}: {info.type}" for info in gguf.tensors.values()]
        counted = ", ".join(f"{count} {name}" for name, count in types.most_common())
        first = bilingual("structure.types_found", counted=counted, fallbacks=len(fallbacks))
        tell(first.followed_by("".join(f"\n{line}" for line in each)))
