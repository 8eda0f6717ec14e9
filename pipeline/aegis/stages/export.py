"""export-gguf: a merged folder to GGUF files that llama.cpp and Ollama run, and a look at what the tools made of it.

The converter and the quantizer are llama.cpp's own; what they report is not taken on trust.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from aegis.verification.logits import check_answers


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
    work = _Export.prepare(model, config)
    facts, manifest = work.facts, work.manifest()
    report = ExportReport(out, facts.name, tuple(out / file for file in facts.files.values()), facts.context_tokens)
    if reuse and finished(out, manifest) is not None:
        return report

    needed = disk_needed(model, work.shards, work.quantized)
    disk.require_space(out, needed, phrase("disk.gguf_files"))
    if dry_run:
        return replace(report, disk_bytes=needed)
    progress.say(phrase("export.disk_peak", needed=disk.format_bytes(needed)))
    with publishing(out, manifest, overwrite=overwrite) as staging:
        fallbacks = work.write_ggufs(staging.path)
        files = _hashed(staging, list(facts.files.values()))
        write_export_sidecars(model, staging.path, facts.name, files, __version__)
        staging.facts = facts.model_copy(update={"fallback_tensors": fallbacks}).recorded()
    return report


@dataclass(frozen=True)
class _Export:
    """One export: everything that is known before the first byte is written."""

    model: Path
    config: ExportConfig
    quants: tuple[str, ...]
    source_config: dict[str, Any]
    shards: ShardSet
    tokenizer: Any
    facts: ExportFacts

    @classmethod
    def prepare(cls, model: Path, config: ExportConfig) -> _Export:
        """Look at settings and folder, and refuse what could not be exported."""
        quants = tuple(dict.fromkeys(parse_quant(name) for name in config.quant))
        for quant in quants:
            refuse_without_imatrix(quant, config.imatrix)
        if config.head_quant is not None:
            parse_tensor_type(config.head_quant)
        source_config = read_config(model)
        check_family(source_config)
        shards = ShardSet.open(model)
        name = general_name(config.name, model, str(source_config["model_type"]))
        kept = [F16] if config.keep_f16 or F16 in quants else []
        facts = ExportFacts(
            name=name,
            context_tokens=context_tokens(source_config),
            files={quant: _file_name(name, quant) for quant in [*(quant for quant in quants if quant != F16), *kept]},
        )
        tokenizer = load_tokenizer(model)
        end_tokens(model, source_config)  # before the conversion, which may take minutes
        return cls(model, config, quants, source_config, shards, tokenizer, facts)

    @property
    def quantized(self) -> list[str]:
        return list(self.facts.quantized)

    def manifest(self) -> Manifest:
        inputs = _inputs(self.model, self.shards)
        if self.config.imatrix is not None:
            inputs["imatrix"] = importance_sha256(self.config.imatrix, inputs["model"])
        return Manifest(
            stage="export-gguf",
            config={
                **self.config.model_dump(mode="json", exclude={"llama_cpp_dir", "imatrix"}),
                "name": self.facts.name,
                "quant": list(self.quants),
            },
            inputs=inputs,
            facts=self.facts.recorded(),
        )

    def write_ggufs(self, folder: Path) -> dict[str, list[str]]:
        """Convert and quantize, and check what came of it; returns each type's tensors that fell back to another."""
        config, f16, fallbacks = self.config, folder / _file_name(self.facts.name, F16), {}
        convert(self.model, f16, model_name=self.facts.name, tree=config.llama_cpp_dir)
        check_f16(f16, self.shards, self.source_config, self.tokenizer)
        for quant, name in self.facts.quantized.items():
            quantize(f16, folder / name, quant, output_tensor_type=config.head_quant, imatrix=config.imatrix)
            fallbacks[quant] = check_quantized(folder / name, quant, config.head_quant)
        if self.facts.f16 is None:
            f16.unlink()
        for name in self.facts.files.values():
            check_answers(folder / name)
        return fallbacks


def _file_name(name: str, quant: str) -> str:
    return f"{disk.file_stem(name)}-{quant}.gguf"


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
