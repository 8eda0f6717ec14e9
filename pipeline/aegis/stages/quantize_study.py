"""quantize-study: measures what each quantization costs on the user's own text, and recommends one.

Each requested type is made plain, with an importance matrix of the user's text, and with an 8-bit LM head, which has
the soul. Each file is compared with the f16 GGUF on text that the matrix was not made from, and removed before the next
one is made. verify proves the conversion; this stage measures only the quantization.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.config.recorded import recorded_config
from aegis.config.study_settings import StudyConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import load_training_set
from aegis.errors import IntegrityError, UsageError
from aegis.llama_cpp import (
    IMATRIX_TYPES,
    convert,
    imatrix_tool,
    parse_quant,
    refuse_without_compiler,
)
from aegis.messages import phrase
from aegis.model.base import load_tokenizer, read_config
from aegis.model.provenance import provenance_of_folder
from aegis.model.shards import HEAD, ShardSet
from aegis.report.plots.study import StudyPoint, draw_study
from aegis.runs import disk
from aegis.runs.facts import ExportFacts, Recommended, StudyFacts
from aegis.runs.manifest import Manifest, read_manifest
from aegis.runs.publish import Staging, publishing, refuse_existing
from aegis.runs.run import REPORT, STUDY_PLOT, Run
from aegis.verification import run_checks
from aegis.verification.gguf_checks import check_f16, files_bytes
from aegis.verification.heldout_text import sequence_limit
from aegis.verification.run_checks import Checks
from aegis.verification.study.result import NotBuilt, Study
from aegis.verification.study.sweep import Sweep
from aegis.verification.study.text_split import StudyText

_NOT_QUANTIZED = ("F32", "F16", "BF16")
_IMATRIX_BYTES = 1 << 20
"""Names and header of an importance matrix; its values are counted separately."""


@dataclass(frozen=True)
class StudyReport:
    """The result of a study; `study` is None after a dry run.

    Attributes:
        name: general.name of the files; with it, export makes the recommended file again byte for byte.
        made: number of combinations that are made and measured.
        disk_bytes: the largest number of bytes on the disk at one time.
    """

    out: Path
    name: str
    made: int
    disk_bytes: int
    study: Study | None = None


def quantize_study(run: Run, config: StudyConfig, *, overwrite: bool = False, dry_run: bool = False) -> StudyReport:
    """Make, measure and remove every combination, and publish the report, the picture and the importance matrix.

    Args:
        run: a run with a merged model and its export.
        overwrite: replace an earlier study.
        dry_run: stop before the first byte is written; all checks are made.

    Raises:
        UsageError: a type is unknown, no combination can be made, or there is a study already.
        IntegrityError: the run is not finished, or differs from its manifests.
        DataError: there is too little text.
        EnvironmentFault: the disk is too small, or there is no compiler for the importance matrix.
        ToolError: a tool of llama.cpp failed.
    """
    refuse_existing(run.study, overwrite=overwrite)
    made, left = _combinations(config)
    _check_run(run)
    if finish := provenance_of_folder(run.merged).finish:
        progress.say(phrase("quantize_study.finished_for", finish=finish))
    merged, exported = read_manifest(run.merged), read_manifest(run.gguf)
    tokenizer, shards = load_tokenizer(run.merged), ShardSet.open(run.merged)
    vocab_size = shards.entries[HEAD].shape[0]
    facts = ExportFacts.of(exported)
    limit = sequence_limit(vocab_size, facts.context_tokens)
    material = _material(run, config, tokenizer, limit, keep=not dry_run)
    name = facts.name
    f16 = run.gguf / facts.f16 if facts.f16 else None

    needed = _disk_needed(run, config, shards, made, material, vocab_size, rebuild=f16 is None)
    disk.require_space(run.study, needed, phrase("disk.study"))
    with_matrix = any("imatrix" in variant for _, variant in made)
    if with_matrix:
        refuse_without_compiler()
    if dry_run:
        return StudyReport(run.study, name, len(made), needed)
    if with_matrix:
        imatrix_tool()  # before the conversion, which may take minutes, so that a failed compilation shows early
    progress.say(phrase("quantize_study.disk_peak", made_count=len(made), needed=disk.format_bytes(needed)))
    with publishing(run.study, _manifest(config, merged, exported), overwrite=overwrite) as staging:
        work = staging.path / "work"
        work.mkdir()
        if f16 is None:
            f16 = work / "F16.gguf"
            convert(run.merged, f16, model_name=name, tree=config.llama_cpp_dir)
            check_f16(f16, shards, read_config(run.merged), tokenizer)
        study = Sweep(config, material, f16, staging.path, work).run(made, left)
        shutil.rmtree(work)
        _write(study, name, staging)
    return StudyReport(run.study, name, len(made), needed, study)


def _write(study: Study, name: str, staging: Staging) -> None:
    """Write the report and the plot."""
    report = json.dumps(study.as_json(), indent=2, ensure_ascii=False) + "\n"
    (staging.path / REPORT).write_text(report, encoding="utf-8")
    _draw(study, staging.path / STUDY_PLOT)
    recommended = Recommended(quant=study.recommended.quant, variant=study.recommended.variant)
    staging.facts = StudyFacts(name=name, recommended=recommended).recorded()


def _manifest(config: StudyConfig, merged: Manifest, exported: Manifest) -> Manifest:
    return Manifest(
        stage="quantize-study",
        config=config.model_dump(mode="json", exclude={"llama_cpp_dir", "text"}),
        inputs={"model": merged.files_digest, "convert": exported.exact_identity},
        facts={},
    )


def _combinations(config: StudyConfig) -> tuple[list[tuple[str, str]], list[NotBuilt]]:
    """Return the combinations of type and variant that can be made, and those that cannot."""
    quants = list(dict.fromkeys(parse_quant(name) for name in config.quant))
    if unquantized := [quant for quant in quants if quant in _NOT_QUANTIZED]:
        raise UsageError("quantize_study.not_a_quantization", unquantized=unquantized[0])
    made, left = [], []
    for quant in quants:
        for variant in config.variants:
            if quant in IMATRIX_TYPES and "imatrix" not in variant:
                left.append(NotBuilt(quant, variant, "needs_imatrix"))
            else:
                made.append((quant, variant))
    if not made:
        raise UsageError("quantize_study.needs_imatrix", quant=left[0].quant)
    return made, left


def _check_run(run: Run) -> None:
    run.require_finished()
    checks = Checks()
    run_checks.check_published(checks, run)
    if not checks.ok:
        failed = [f"{check.name.shown}: {check.detail.shown}" for check in checks.done if not check.ok]
        raise IntegrityError("quantize_study.damaged", run_root=run.root, failed="\n".join(failed))


def _material(run: Run, config: StudyConfig, tokenizer: Any, limit: int, *, keep: bool) -> StudyText:
    if config.text is not None:
        return StudyText.of_file(config.text, tokenizer, config.tokens, config.calibration_tokens, limit)
    data = load_training_set(recorded_config(read_manifest(run.adapter), TrainConfig), tokenizer, keep=keep)
    return StudyText.of_rows(data.train, data.heldout, tokenizer, config.tokens, config.calibration_tokens, limit)


def _disk_needed(
    run: Run,
    config: StudyConfig,
    shards: ShardSet,
    made: list[tuple[str, str]],
    material: StudyText,
    vocab_size: int,
    *,
    rebuild: bool,
) -> int:
    """Return the bytes that the study writes at once.

    These are the f16 file if it is rebuilt, one or all quantized files, two recordings and the importance matrix.
    """
    sizes = [files_bytes(run.merged, shards, [quant]) for quant, _ in made]
    logits = 2 * sum(map(len, material.measured)) * vocab_size * 4
    columns = sum(4 * entry.shape[-1] for entry in shards.entries.values() if len(entry.shape) > 1)
    matrix = columns + _IMATRIX_BYTES + len(material.calibration.encode())
    f16 = files_bytes(run.merged, shards, ["F16"]) if rebuild else 0
    return f16 + (sum(sizes) if config.keep else max(sizes)) + logits + matrix


def _draw(study: Study, path: Path) -> None:
    front, chosen = study.front, study.recommended
    points = [
        StudyPoint(row.quant, row.variant, row.bytes, row.found.mean_kl, row in front, row == chosen)
        for row in study.measured
        if row.same_as is None
    ]
    limit = min(row.found.mean_kl for row in study.measured) + study.tolerance
    draw_study(points, limit, path)
