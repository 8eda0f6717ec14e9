"""Checks one artifact by itself: a soul, an adapter, a model folder, a GGUF or an earlier report."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from aegis import progress
from aegis.errors import IntegrityError
from aegis.llama_cpp import GgufFile, refuse_fatal
from aegis.messages import Bilingual, bilingual, phrase
from aegis.model.adapter import load_adapter
from aegis.model.base import load_tokenizer, read_config
from aegis.model.families import check_family, check_head_bias
from aegis.model.shards import HEAD, ShardSet
from aegis.runs.manifest import MANIFEST, Manifest, verify_directory, verify_file
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul
from aegis.verification.run_checks import Checks, check_finite, check_stock
from aegis.verification.study.result import read_study
from aegis.verification.verdict import read_report

_SLAB_BYTES = 16 << 20
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def check_hashes(checks: Checks, directory: Path, stage: str) -> Manifest | None:
    """Check every file of a published directory by its hash; return None if the manifest is missing or damaged."""
    manifest = None
    with checks.check(bilingual("structure.files", folder=directory.name), stage) as detail:
        if (directory / MANIFEST).is_file():
            manifest = verify_directory(directory)
            detail(bilingual("alone.published_by", count=len(manifest.files), stage=manifest.stage))
        else:
            detail(bilingual("alone.no_manifest", manifest=MANIFEST))
    return manifest


def check_hash(checks: Checks, path: Path, stage: str) -> None:
    """Check one file by the manifest beside it, if there is one."""
    with checks.check(bilingual("alone.file", name=path.name), stage) as detail:
        known = verify_file(path)
        detail(bilingual("alone.hash_as_published") if known else bilingual("alone.not_in_manifest", manifest=MANIFEST))


def check_soul(checks: Checks, path: Path, *, ours: bool) -> None:
    """Check that R is orthogonal and has the recorded determinant; a soul trained here is never a reflection."""
    with checks.check(bilingual("alone.orthogonal"), "train") as detail:
        soul = load_soul(path)
        if soul.reflection and ours:
            raise IntegrityError("alone.reflection", path=path)
        detail(
            bilingual(
                "alone.soul",
                determinant=bilingual("alone.told_reflection") if soul.reflection else bilingual("alone.rotation"),
                kind=soul.kind,
                width=soul.hidden_size,
                step=soul.step,
                gate=soul.gate,
            )
        )


def check_adapter(checks: Checks, folder: Path) -> None:
    """Check that an adapter is finite, has A and B of the configured rank, and has the same modules in every layer."""
    with checks.check(bilingual("alone.adapter_whole"), "train") as detail:
        adapter = load_adapter(folder)
        _refuse_gaps(bilingual("alone.the_adapter", folder=folder), _LAYER, list(adapter.updates))
        detail(bilingual("alone.modules", count=len(adapter.updates)))


def check_checkpoint(checks: Checks, folder: Path) -> None:
    """Check an adapter's folder, with or without a soul."""
    manifest = check_hashes(checks, folder, "train")
    check_adapter(checks, folder)
    if (folder / SOUL_FILE).is_file() or manifest is not None:
        check_soul(checks, folder / SOUL_FILE, ours=manifest is not None)


def check_model(checks: Checks, folder: Path) -> None:
    """Check a merged folder, or any model folder with a separate LM head."""
    check_hashes(checks, folder, "merge")
    with checks.check(bilingual("alone.folder"), "merge") as detail:
        config, shards = read_config(folder), ShardSet.open(folder)
        check_family(config)
        check_head_bias(config, shards.entries)
        head = shards.entries.get(HEAD)
        if head is None:
            raise IntegrityError("alone.no_head", folder=folder, head=HEAD)
        if len(head.shape) != 2 or head.shape != (config.get("vocab_size"), config.get("hidden_size")):
            raise IntegrityError("alone.head_shape", head=HEAD, folder=folder, head_shape=head.shape)
        detail(
            bilingual(
                "alone.folder_found",
                model_type=config["model_type"],
                tensors=len(shards.entries),
                rows=head.shape[0],
                columns=head.shape[1],
            )
        )
    if not checks.done[-1].ok:
        return
    check_stock(checks, folder)
    check_finite(checks, folder)
    with checks.check(bilingual("alone.tokenizer"), "merge") as detail:
        size = len(load_tokenizer(folder))
        if size > head.shape[0]:
            raise IntegrityError("alone.too_many_tokens", folder=folder, size=size, head_shape=head.shape[0])
        detail(bilingual("structure.tokens", count=size))


def check_gguf(checks: Checks, path: Path) -> None:
    """Check that a GGUF is complete, holds one model with a head and a matching vocabulary, and has finite values."""
    with checks.check(bilingual("alone.readable"), "convert") as detail, GgufFile(path) as gguf:
        detail(_one_model(gguf))
    if not checks.done[-1].ok:
        return
    with GgufFile(path) as gguf:
        with checks.check(bilingual("structure.vocabulary"), "convert") as detail:
            detail(_vocabulary(gguf))
            refuse_fatal(path)
        with checks.check(bilingual("alone.layers"), "convert") as detail:
            _tensors(gguf)
            types = Counter(info.type for info in gguf.tensors.values())
            detail(Bilingual.same(", ".join(f"{count} {name}" for name, count in types.most_common())))
        with checks.check(bilingual("structure.finite"), "convert") as detail:
            detail(_finite(gguf))


def check_report(checks: Checks, path: Path) -> None:
    """Check the report of an earlier verify, and its verdict."""
    with checks.check(bilingual("alone.report", name=path.name), "verify"):
        report = read_report(path)
    if checks.done[-1].ok:
        failed_stage = report.get("failed_stage")
        with checks.check(bilingual("alone.says"), "verify" if failed_stage is None else str(failed_stage)) as detail:
            if report["ok"] is not True:
                raise IntegrityError("verdict.not_proven", failed_stage=failed_stage)
            detail(bilingual("alone.proven", tokens=report.get("tokens")))


def check_study(checks: Checks, path: Path) -> None:
    """Check the report of an earlier quantize-study."""
    with checks.check(bilingual("alone.report", name=path.name), "quantize") as detail:
        report = read_study(path)
        detail(bilingual("alone.measured", files=len(report.get("measured") or ()), tokens=report.get("tokens")))


def _one_model(gguf: GgufFile) -> Bilingual:
    family, kind = (gguf.metadata.get(f"general.{key}") for key in ("architecture", "type"))
    if not isinstance(family, str):
        raise IntegrityError("alone.names_no_architecture", gguf_path=gguf.path)
    if kind not in (None, "model"):
        raise IntegrityError("alone.other_type", gguf_path=gguf.path, kind=kind)
    parts = gguf.metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise IntegrityError("alone.split", gguf_path=gguf.path, parts=parts)
    name = gguf.metadata.get("general.name")
    return bilingual("alone.one_model", family=family, name=name, tensors=len(gguf.tensors))


def _vocabulary(gguf: GgufFile) -> Bilingual:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise IntegrityError("alone.no_vocabulary", gguf_path=gguf.path)
    for name in ("token_type", "scores"):
        beside = gguf.metadata.get(f"tokenizer.ggml.{name}")
        if beside is not None and (not isinstance(beside, list) or len(beside) != len(tokens)):
            raise IntegrityError("alone.token_list", gguf_path=gguf.path, name=name)
    for name in ("bos", "eos", "unknown", "padding"):
        token: Any = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and (type(token) is not int or not 0 <= token < len(tokens)):
            raise IntegrityError(
                "alone.token_out_of_range", gguf_path=gguf.path, name=name, token=token, tokens_count=len(tokens)
            )
    if gguf.metadata.get("tokenizer.ggml.eos_token_id") is None:
        raise IntegrityError("alone.no_end_token", gguf_path=gguf.path)
    if gguf.metadata.get("tokenizer.chat_template"):
        return bilingual("alone.with_template", tokens=len(tokens))
    return bilingual("alone.without_template", tokens=len(tokens))


def _tensors(gguf: GgufFile) -> None:
    """Refuse head, embeddings or rope factors of other sizes than the metadata says, and a layer without a tensor."""
    family, tensors = gguf.metadata["general.architecture"], gguf.tensors
    vocabulary = gguf.metadata.get("tokenizer.ggml.tokens")
    width, layers, context, original, rotated = (
        gguf.metadata.get(f"{family}.{key}")
        for key in (
            "embedding_length",
            "block_count",
            "context_length",
            "rope.scaling.original_context_length",
            "rope.dimension_count",
        )
    )
    if "output.weight" not in tensors:
        raise IntegrityError("alone.no_output_weight", gguf_path=gguf.path)
    shape = (len(vocabulary) if isinstance(vocabulary, list) else None, width)
    for name in ("output.weight", "token_embd.weight"):
        if name not in tensors or tensors[name].shape != shape:
            found = tensors[name].shape if name in tensors else bilingual("alone.nothing")
            raise IntegrityError("alone.shape", name=name, gguf_path=gguf.path, found=found, shape=shape)
    if _refuse_gaps(gguf.path, _BLOCK, list(tensors)) != layers:
        raise IntegrityError("alone.lost_layers", gguf_path=gguf.path, layers=layers)
    if family == "phi3" and isinstance(context, int) and isinstance(original, int) and original < context:
        for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
            factors = tensors[name].shape[-1] if name in tensors else 0
            if not factors or (isinstance(rotated, int) and 2 * factors != rotated):
                raise IntegrityError(
                    "alone.rope_factors", name=name, gguf_path=gguf.path, factors=factors, rotated=rotated
                )


def _refuse_gaps(what: object, pattern: re.Pattern[str], names: list[str]) -> int:
    """Return the number of layers; refuse a missing layer, or a layer that lacks what the others have."""
    layers: dict[int, set[str]] = {}
    for name in names:
        if (match := pattern.fullmatch(name)) is not None:
            layers.setdefault(int(match[1][:9]), set()).add(match[2])
    if layers and max(layers) + 1 != len(layers):
        raise IntegrityError("alone.missing_layers", what=what, layers=max(layers))
    every = set().union(*layers.values())
    # some families have layers of several kinds: only a part that most layers have is required in all
    common = {part for part in every if 2 * sum(part in have for have in layers.values()) > len(layers)}
    for layer, have in sorted(layers.items()):
        if lost := sorted(common - have):
            raise IntegrityError("alone.incomplete_layer", what=what, layer=layer, lost=lost[0])
    return len(layers)


def _finite(gguf: GgufFile) -> Bilingual:
    total = sum(info.size_bytes for info in gguf.tensors.values())
    # a damaged scale may have any value: its block is checked below, so numpy need not warn
    with progress.task(phrase("alone.reading_tensors"), total, "B") as bar, np.errstate(all="ignore"):
        for name, info in gguf.tensors.items():
            for values in gguf.slabs(name, _SLAB_BYTES):
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    raise IntegrityError("alone.holds_nan_inf", name=name, gguf_path=gguf.path)
            bar.advance(info.size_bytes)
    return bilingual("structure.tensors", count=len(gguf.tensors))
