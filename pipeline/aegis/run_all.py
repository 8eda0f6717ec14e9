"""Runs the stages in order; only this module knows more than one stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from aegis import progress
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import IntegrityError, Interrupted, UsageError
from aegis.llama_cpp import PreparedTool, prepared_converter
from aegis.messages import bilingual, phrase
from aegis.runs import known_hashes
from aegis.runs.foreign import refuse_foreign
from aegis.runs.manifest import MANIFEST
from aegis.runs.publish import discard, discard_leftovers
from aegis.runs.run import Run
from aegis.runs.stage_times import StageTimes
from aegis.stages.export import ExportReport, export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.train import train
from aegis.stages.verify import verify
from aegis.training.distributed.launcher import world_size
from aegis.verification.converted_file import ConvertedFile
from aegis.verification.divergence import scratch
from aegis.verification.early_half import early_half
from aegis.verification.run_precheck import Later
from aegis.verification.verdict import Verdict


def run_all(
    train_config: TrainConfig,
    merge_config: MergeConfig,
    export_config: ExportConfig,
    verify_config: VerifyConfig,
    run: Run,
    *,
    overwrite: bool = False,
    times: StageTimes | None = None,
) -> tuple[ExportReport, Verdict]:
    """Train, merge, export and verify; finished unchanged stages are kept, and an interrupted training is resumed.

    Args:
        overwrite: start a new training even if the run has another one.
        times: gets what every stage took.

    Raises:
        LockedError: another process works in the run.
        UsageError: a launcher started several processes, and only training can be shared; or a folder of the run has
            files that AEGIS did not write.
        IntegrityError: verify found a fault; the export is then renamed to gguf.failed.
        AegisError: as in the stages.
    """
    if world_size() > 1:
        raise UsageError("run.one_process")
    times = times or StageTimes()
    with run.lock(), known_hashes.trusting(paranoid=verify_config.paranoid):
        refuse_foreign(*run.folders)  # not after hours of training
        discard_leftovers(run.verify)  # the f16 file of a killed run, before the disk's space is checked
        with _stage(times, "run.train", run.adapter):
            later = Later(merge_config, export_config, is_certain=True)
            try:
                train(train_config, run, overwrite=overwrite, reuse=not overwrite, later=later)
            except Interrupted as error:
                raise error.with_fix(bilingual("run.go_on")) from None
        with scratch(run.verify) as between, _prepared(run, export_config) as prepared:
            with _stage(times, "run.merge", run.merged):
                merge(MergeInputs.from_run(run), run.merged, merge_config, overwrite=True, reuse=True)
            same_tree = export_config.llama_cpp_dir == verify_config.llama_cpp_dir
            f16 = ConvertedFile(between / "F16.gguf") if same_tree and not verify_config.paranoid else None
            with early_half(run, verify_config, between, f16) if f16 and prepared else nullcontext() as early:
                with _stage(times, "run.export", run.gguf):
                    exported = export_gguf(
                        run.merged, run.gguf, export_config,
                        overwrite=True, reuse=True, hand_over=f16, prepared=prepared,
                    )  # fmt: skip
                with _stage(times, "run.verify", run.verify):
                    verdict = verify(run, verify_config, converted=f16.path if f16 else None, early=early)
        _refuse_unproven(run, verdict)
    return exported, verdict


def _prepared(run: Run, config: ExportConfig) -> AbstractContextManager[PreparedTool | None]:
    """Start the converter's process beside merge, unless there is an export, which may stay."""
    return prepared_converter(config.llama_cpp_dir) if _published(run.gguf) is None else nullcontext()


def _refuse_unproven(run: Run, verdict: Verdict) -> None:
    """Rename an export that verify found at fault, so that nobody takes it for a proven one."""
    if verdict.failed_stage is None:
        return
    discard(run.unproven_gguf)
    run.gguf.rename(run.unproven_gguf)
    raise IntegrityError(
        "run.export_unproven",
        failed_stage=verdict.failed_stage,
        failures="\n".join(verdict.failures),
        failed=run.unproven_gguf,
        verify=run.verify,
    )


@contextmanager
def _stage(times: StageTimes, key: str, place: Path) -> Iterator[None]:
    """Say what is made and where; and afterwards what it took, and if it stood there already, that it was kept."""
    progress.say(phrase(key, place=place))
    before = _published(place)
    with times.stage(name := key.partition(".")[2]):
        yield
        if before is not None and _published(place) == before:
            times.kept.add(name)
            progress.say(phrase("run.kept", place=place))


def _published(place: Path) -> int | None:
    manifest = place / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.is_file() else None
