"""export-gguf: a merged folder to GGUF files that llama.cpp and Ollama run, and a look at what the tools made of it.

The converter and the quantizer are llama.cpp's own; what they report is not taken on trust.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from aegis import __version__, progress
from aegis.config.settings import ExportConfig
from aegis.llama_cpp import convert, parse_quant, parse_tensor_type, quantize, refuse_without_imatrix
from aegis.messages import phrase
from aegis.model.base import load_tokenizer, read_config
from aegis.model.families import check_family
from aegis.model.shards import ShardSet
from aegis.model.vocabulary import name_for_llama_cpp, vocabulary_of
from aegis.report.card import CardFile
from aegis.runs import disk
from aegis.runs.facts import F16, ExportFacts, MergeFacts
from aegis.runs.manifest import MANIFEST, Manifest, digest, file_sha256, finished, verify_directory
from aegis.runs.publish import Staging, publishing, refuse_existing
from aegis.verification.export_sidecars import context_tokens, end_tokens, write_export_sidecars
from aegis.verification.gguf_checks import check_f16, check_quantized, files_bytes, importance_sha256


@dataclass(frozen=True)
class ExportReport:
    """The files that were published, quantized ones first."""

    out: Path
    name: str
    files: tuple[Path, ...]
    context_tokens: int
    disk_bytes: int | None = None
    """What a dry run found is needed at most, the f16 file on the way included."""


def export_gguf(
    model: Path,
    out: Path,
    config: ExportConfig,
    *,
    overwrite: bool = False,
    reuse: bool = False,
    dry_run: bool = False,
) -> ExportReport:
    """Convert, check, quantize, check again, and write a Modelfile beside the result.

    Args:
        model: a merged folder, or any stock model folder llama.cpp converts.
        out: the directory to publish.
        overwrite: replace what stands at `out`, once the new directory is whole.
        reuse: with `overwrite`, keep what stands there if it was made like this from this folder.
        dry_run: stop before the first byte is written; everything that would be refused is.

    Raises:
        UsageError: unknown quantization, one that needs an importance matrix, or `out` exists.
        UnsupportedModelError: the architecture would lose its LM head.
        IntegrityError: the GGUF does not hold what the folder holds, or the importance matrix is another model's.
        ToolError: converter or quantizer failed.
        EnvironmentFault: the disk is too small.
    """
    refuse_existing(out, overwrite=overwrite)
    quants = tuple(dict.fromkeys(parse_quant(name) for name in config.quant))
    for quant in quants:
        refuse_without_imatrix(quant, config.imatrix)
    if config.head_quant is not None:
        parse_tensor_type(config.head_quant)
    source_config = read_config(model)
    check_family(source_config)
    shards = ShardSet.open(model)
    name = general_name(config.name, model, str(source_config["model_type"]))
    context = context_tokens(source_config)
    tokenizer = load_tokenizer(model)
    end_tokens(model, source_config)  # before the conversion, which may take minutes

    inputs = _inputs(model, shards)
    if config.imatrix is not None:
        inputs["imatrix"] = importance_sha256(config.imatrix, inputs["model"])
    keep_f16 = config.keep_f16 or F16 in quants
    quantized = [quant for quant in quants if quant != F16]
    files = {quant: f"{disk.file_stem(name)}-{quant}.gguf" for quant in (*quantized, F16)}
    published = {quant: file for quant, file in files.items() if quant != F16 or keep_f16}
    facts = ExportFacts(name=name, context_tokens=context, files=published)
    manifest = Manifest(
        stage="export-gguf",
        config={
            **config.model_dump(mode="json", exclude={"llama_cpp_dir", "imatrix"}),
            "name": name,
            "quant": list(quants),
        },
        inputs=inputs,
        facts=facts.recorded(),
    )
    report = ExportReport(out, name, tuple(out / file for file in published.values()), context)
    if reuse and finished(out, manifest) is not None:
        return report

    needed = disk_needed(model, shards, quantized)
    disk.require_space(out, needed, phrase("disk.gguf_files"))
    if dry_run:
        return replace(report, disk_bytes=needed)
    progress.say(phrase("export.disk_peak", needed=disk.format_bytes(needed)))
    with publishing(out, manifest, overwrite=overwrite) as staging:
        f16 = staging.path / files[F16]
        convert(model, f16, model_name=name, tree=config.llama_cpp_dir)
        check_f16(f16, shards, source_config, tokenizer)
        fallbacks = {}
        for quant in quantized:
            quantize(
                f16, staging.path / files[quant], quant, output_tensor_type=config.head_quant, imatrix=config.imatrix
            )
            fallbacks[quant] = check_quantized(staging.path / files[quant], quant, config.head_quant)
        if not keep_f16:
            f16.unlink()
        write_export_sidecars(model, staging.path, name, _hashed(staging, list(published.values())), __version__)
        staging.facts = facts.model_copy(update={"fallback_tensors": fallbacks}).recorded()
    return report


def general_name(wanted: str | None, model: Path, model_type: str) -> str:
    """Return general.name: what was asked for or the base's name, as llama.cpp needs it for this vocabulary."""
    return name_for_llama_cpp(wanted or _base_name(model) + "-AEGIS", model_type, vocabulary_of(model))


def _base_name(model: Path) -> str:
    if (merged := MergeFacts.known(model)) is not None:
        return Path(merged.base_model).name
    return model.resolve().name


def _inputs(model: Path, shards: ShardSet) -> dict[str, str]:
    if (model / MANIFEST).is_file():
        known = {name: record.sha256 for name, record in verify_directory(model).files.items()}
        return {"model": digest(known)}
    return {"model": digest({path.name: file_sha256(path) for path in shards.files})}


def disk_needed(model: Path, shards: ShardSet, quantized: list[str]) -> int:
    """The most that stands on the disk at a time: every file."""
    return files_bytes(model, shards, [F16, *quantized])


def _hashed(staging: Staging, names: list[str]) -> list[CardFile]:
    files = [CardFile(name, (path := staging.path / name).stat().st_size, file_sha256(path)) for name in names]
    for file in files:
        staging.hashed(file.name, file.bytes, file.sha256)
    return files
