"""export-gguf: converts a merged folder to GGUF files for llama.cpp and Ollama, and checks the result.

The converter and the quantizer are llama.cpp's own; their output is checked, not trusted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from aegis import __version__, progress
from aegis.background import Background, stop_if_asked
from aegis.config.settings import ExportConfig
from aegis.errors import IntegrityError, ToolError
from aegis.llama_cpp import PreparedTool, convert, quantize, refuse_without_imatrix
from aegis.llama_cpp.ollama.modelfile import Defaults
from aegis.messages import phrase
from aegis.model.base import TOKENIZER_FILES, load_tokenizer, read_config
from aegis.model.context import context_tokens
from aegis.model.families import check_family
from aegis.model.provenance import provenance_of_folder
from aegis.model.shards import ShardSet
from aegis.model.vocabulary import name_for_llama_cpp
from aegis.report.card import CardFile
from aegis.runs import disk, known_hashes
from aegis.runs.facts import F16, ExportFacts, MergeFacts, result_name
from aegis.runs.foreign import refuse_inputs
from aegis.runs.manifest import MANIFEST, Manifest, digest, file_sha256, verify_directory
from aegis.runs.publish import Staging, publishing, refuse_existing
from aegis.verification.converted_file import ConvertedFile
from aegis.verification.earlier_export import EarlierExport
from aegis.verification.export_sidecars import end_tokens, write_export_sidecars
from aegis.verification.gguf_checks import check_f16, check_quantized, files_bytes, importance_sha256
from aegis.verification.logits import check_answers
from aegis.verification.run_precheck import asked_quants, refuse_unwritable


@dataclass(frozen=True)
class ExportReport:
    """The published files, the quantized ones first."""

    out: Path
    name: str
    files: tuple[Path, ...]
    context_tokens: int
    disk_bytes: int | None = None
    """Upper bound on the needed disk space, with the temporary f16 file; only from a dry run."""


def export_gguf(
    model: Path,
    out: Path,
    config: ExportConfig,
    *,
    overwrite: bool = False,
    reuse: bool = False,
    dry_run: bool = False,
    hand_over: ConvertedFile | None = None,
    prepared: PreparedTool | None = None,
) -> ExportReport:
    """Convert, check, quantize, check again, and write a Modelfile beside the result.

    If `out` has an export of the same folder with the same settings, types are added to it and its files stay.

    Args:
        model: a merged folder, or any stock model folder that llama.cpp converts.
        out: the directory to publish.
        overwrite: replace `out` when the new directory is complete.
        reuse: with `overwrite`, replace only an export with other settings or of another folder, with all its types.
        dry_run: stop before the first byte is written; all checks are made.
        hand_over: where to leave an f16 file that is not published, for verify in the same process; None removes it.
        prepared: the converter's process, if it was started before.

    Raises:
        UsageError: a quantization is unknown or needs an importance matrix, or `out` is not such an export, or holds
            an input.
        UnsupportedModelError: the architecture would lose its LM head.
        IntegrityError: the GGUF differs from the folder, or the importance matrix belongs to another model.
        ToolError: converter or quantizer failed.
        EnvironmentFault: the disk is too small.
    """
    earlier = EarlierExport.find(out) if reuse or not overwrite else None
    refuse_existing(out, overwrite=overwrite or earlier is not None)
    refuse_inputs(out, model, *filter(None, [config.imatrix]))
    work = _Export.prepare(model, earlier.with_its_types(config) if earlier else config)
    work = replace(work, hand_over=hand_over, prepared=prepared)
    facts, manifest = work.facts, work.manifest()
    report = ExportReport(out, facts.name, tuple(out / file for file in facts.files.values()), facts.context_tokens)
    there = earlier.facts_if_alike(manifest, overwrite=overwrite) if earlier else None
    missing = [quant for quant in facts.files if there is None or quant not in there.files]
    if not missing:
        return report
    _check_types(model, missing, config, earlier if there is not None else None)
    needed = files_bytes(model, work.shards, [F16, *(quant for quant in missing if quant != F16)])
    disk.require_space(out, needed, phrase("disk.gguf_files"))
    if dry_run:
        return replace(report, disk_bytes=needed)
    progress.say(phrase("export.disk_peak", needed=disk.format_bytes(needed)))
    with publishing(out, manifest, overwrite=overwrite or there is not None) as staging:
        work.fill(staging, out, there)
    return report


@dataclass(frozen=True)
class _Export:
    """What an export knows before the first byte is written."""

    model: Path
    config: ExportConfig
    quants: tuple[str, ...]
    source_config: dict[str, Any]
    shards: ShardSet
    tokenizer: Any
    facts: ExportFacts
    hand_over: ConvertedFile | None = None
    prepared: PreparedTool | None = None

    @classmethod
    def prepare(cls, model: Path, config: ExportConfig) -> _Export:
        """Read settings and folder, and refuse what cannot be exported."""
        quants = asked_quants(config)
        refuse_unwritable(config)
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

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The hashes of the folder and of the importance matrix."""
        inputs = _inputs(self.model, self.shards)
        if self.config.imatrix is not None:
            inputs["imatrix"] = importance_sha256(self.config.imatrix, inputs["model"])
        return inputs

    def manifest(self) -> Manifest:
        return Manifest(
            stage="export-gguf",
            config={
                **self.config.model_dump(mode="json", exclude={"llama_cpp_dir", "imatrix", *_unused(self.config)}),
                "name": self.facts.name,
                "quant": list(self.quants),
            },
            inputs=self.inputs,
            facts=self.facts.recorded(),
        )

    def fill(self, staging: Staging, out: Path, there: ExportFacts | None) -> None:
        """Put all files into the new directory: those that stand in `out` as they are, the others made and checked."""
        for file in there.files.values() if there else ():
            staging.take_over(out / file)
        names = list(self.facts.files.values())
        missing = [name for name in names if not (staging.path / name).exists()]
        fallbacks = {**(there.fallback_tensors if there else {}), **self.write_ggufs(staging.path, missing)}
        stop = threading.Event()
        with Background(lambda: _hashed(staging, names, stop), stop) as hashing:
            for name in missing:
                check_answers(staging.path / name)
            files = hashing.result()
        defaults = Defaults(self.config.system, self.config.temperature)
        write_export_sidecars(self.model, staging.path, self.facts.name, files, __version__, defaults=defaults)
        staging.facts = self.facts.model_copy(update={"fallback_tensors": fallbacks}).recorded()

    def write_ggufs(self, folder: Path, missing: Sequence[str]) -> dict[str, list[str]]:
        """Make and check the missing files; return each type's tensors that fell back to another type."""
        config, f16, fallbacks = self.config, folder / _file_name(self.facts.name, F16), {}
        made = not f16.exists()
        if made:
            convert(self.model, f16, model_name=self.facts.name, tree=config.llama_cpp_dir, prepared=self.prepared)
        stop = threading.Event()
        checks = partial(check_f16, f16, self.shards, self.source_config, self.tokenizer, stop)
        with Background(checks if made else lambda: None, stop) as checking:
            for quant, name in self.facts.quantized.items():
                if name not in missing:
                    continue
                try:
                    quantize(f16, folder / name, quant, output_tensor_type=config.head_quant, imatrix=config.imatrix)
                    fallbacks[quant] = check_quantized(folder / name, quant, config.head_quant)
                except (ToolError, IntegrityError):
                    checking.result()  # a fault of the f16 file would be the cause
                    raise
            checking.result()
        left = f16 if self.facts.f16 else self.hand_over.take(f16) if self.hand_over else None
        if left is None:
            f16.unlink()
        elif made:
            known_hashes.note(left, "converted_from", self.inputs["model"])
        return fallbacks


def _unused(config: ExportConfig) -> set[str]:
    """Return the defaults for Ollama that are not set: an export without them is the same as it was before."""
    return {name for name in ("system", "temperature") if getattr(config, name) is None}


def _file_name(name: str, quant: str) -> str:
    return f"{disk.file_stem(name)}-{quant}.gguf"


def _check_types(model: Path, quants: Sequence[str], config: ExportConfig, earlier: EarlierExport | None) -> None:
    """Refuse types that lack their importance matrix; name those that the training's finish was not for."""
    for quant in quants:
        refuse_without_imatrix(quant, config.imatrix)
    if earlier is not None:
        earlier.refuse_lost_imatrix(config, quants)
    finish = provenance_of_folder(model).finish
    others = [quant for quant in quants if quant not in (finish, F16)]
    if finish and others:
        progress.say(phrase("export.finished_for", finish=finish, others=", ".join(others)))
    if finish in quants and config.imatrix is not None:
        progress.say(phrase("export.finished_without_matrix", finish=finish))


def general_name(wanted: str | None, model: Path, model_type: str) -> str:
    """Return general.name, the wanted one or the base's, in the form that llama.cpp needs for this vocabulary."""
    merged = MergeFacts.known(model)
    base = str(model.resolve()) if merged is None else merged.base_model
    return name_for_llama_cpp(wanted or result_name(base), model_type, model)


def _inputs(model: Path, shards: ShardSet) -> dict[str, str]:
    if (model / MANIFEST).is_file():
        return {"model": verify_directory(model).files_digest}
    described = [model / name for name in ("config.json", "generation_config.json", *TOKENIZER_FILES)]
    files = [*shards.files, *filter(Path.is_file, described)]
    return {"model": digest({path.name: file_sha256(path) for path in files})}


def _hashed(staging: Staging, names: list[str], stop: threading.Event) -> list[CardFile]:
    files = []
    for name in names:
        seen = known_hashes.identity(path := staging.path / name)
        files.append(CardFile(name, path.stat().st_size, file_sha256(path, lambda _: stop_if_asked(stop))))
        staging.hashed(name, files[-1].bytes, files[-1].sha256, seen)
    return files
