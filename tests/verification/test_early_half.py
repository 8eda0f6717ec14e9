"""Tests of a verification that begins before there is a GGUF: its report is the one of a verification in one go."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from aegis import run_all as all_stages
from aegis.background import Background, stop_if_asked
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.llama_cpp import Runtime, convert
from aegis.messages import Bilingual
from aegis.run_all import run_all
from aegis.runs.run import Run
from aegis.stages import export
from aegis.stages.verify import verify
from aegis.verification import merged_checks
from aegis.verification.converted_file import ConvertedFile
from aegis.verification.divergence import Recording
from aegis.verification.early_half import EarlyHalf, early_half
from aegis.verification.examination import Examination
from aegis.verification.llama_passes import LlamaPasses
from aegis.verification.run_checks import Checks
from aegis.verification.transformers_passes import TransformersPasses
from tests.planted.finished import Defect
from tests.planted.keys import KEY_DEFECTS
from tests.planted.merged import MERGED_DEFECTS
from tests.verification.test_planted import FinishedRuns, finished_runs, quick

__all__ = ["finished_runs"]

pytestmark = pytest.mark.usefixtures("cached_tools", "unpainted")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which the transformers models ran."""
    found, run = [], TransformersPasses.run

    def counted(self: TransformersPasses, stop: threading.Event | None = None) -> None:
        found.append(threading.current_thread().name)
        run(self, stop)

    monkeypatch.setattr(TransformersPasses, "run", counted)
    return found


def report(run: Run) -> bytes:
    return (run.verify / "report.json").read_bytes()


def test_the_report_is_the_same_and_no_model_runs_twice(
    finished_runs: FinishedRuns, tmp_path: Path, passes: list[str]
) -> None:
    finished = finished_runs["phi3"]
    whole, halved = finished.copy(tmp_path / "whole"), finished.copy(tmp_path / "halved")
    assert verify(whole, quick(finished)).failures == []
    (tmp_path / "work").mkdir()
    with EarlyHalf(halved, quick(finished), tmp_path / "work", ConvertedFile(tmp_path / "none")) as early:
        assert verify(halved, quick(finished), converted=tmp_path / "none", early=early).steps
    assert report(halved) == report(whole)
    assert len(passes) == 2
    assert threading.current_thread().name == passes[0] != passes[1]


@pytest.mark.parametrize(("defect", "is_early"), [(MERGED_DEFECTS[0], True), (KEY_DEFECTS[0], False)])
def test_a_defect_is_found_as_without_it(
    finished_runs: FinishedRuns, tmp_path: Path, defect: Defect, is_early: bool
) -> None:
    """A defect of the merged folder ends the first half, and the verification says which; one of a GGUF does not."""
    finished = finished_runs[defect.families[0]]
    run = finished.copy(tmp_path / "run")
    defect.plant(finished, run)
    (tmp_path / "work").mkdir()
    with EarlyHalf(run, quick(finished), tmp_path / "work", ConvertedFile(tmp_path / "none")) as early:
        assert (early.examination() is None) is is_early
        halved = verify(run, quick(finished), converted=tmp_path / "none", early=early)
    assert halved.failed_stage == defect.stage
    assert halved.failures == verify(run, quick(finished)).failures


@pytest.mark.parametrize("is_at_fault", [False, True])
def test_on_a_gpu_a_quantized_file_runs_only_after_its_checks(
    finished_runs: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_at_fault: bool
) -> None:
    """A CPU stands in for the GPU. llama.cpp may end the process at a file that its quantizer did not make."""
    defect = KEY_DEFECTS[0]
    finished = finished_runs[defect.families[0]]
    run, added, add = finished.copy(tmp_path / "run"), [], LlamaPasses.add
    if is_at_fault:
        defect.plant(finished, run)

    def noted(self: LlamaPasses, name: str, file: Path) -> None:
        added.append(name)
        add(self, name, file)

    monkeypatch.setattr(LlamaPasses, "add", noted)
    monkeypatch.setattr(Examination, "_is_beside", True)
    verdict = verify(run, quick(finished))
    assert (verdict.failed_stage is not None) is is_at_fault
    assert bool(set(added) - {"f16"}) is not is_at_fault


def test_a_file_that_export_did_not_leave_is_run_and_not_believed(
    finished_runs: FinishedRuns, quick_base: Path, tmp_path: Path
) -> None:
    """Here it is the base's, in the place of export's: the verification converts its own, and compares that."""
    finished = finished_runs["phi3"]
    whole, halved = finished.copy(tmp_path / "whole"), finished.copy(tmp_path / "halved")
    verify(whole, quick(finished))
    (tmp_path / "work").mkdir()
    left = ConvertedFile(tmp_path / "f16.gguf")
    convert(quick_base, tmp_path / "base.gguf", model_name="base")
    left.take(tmp_path / "base.gguf")
    with EarlyHalf(halved, quick(finished), tmp_path / "work", left) as early:
        examination = early.examination()
        assert examination is not None
        assert examination.in_llama.recording("f16").logits.shape[0]
        assert verify(halved, quick(finished), converted=left.path, early=early).failures == []
    assert report(halved) == report(whole)


def test_a_half_that_fails_leaves_nothing_on_the_disk(
    finished_runs: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verification records every model again, in space that was counted once."""
    finished, record, recorded = finished_runs["phi3"], TransformersPasses._record, []

    def full(self: TransformersPasses, name: str, model: object, title: str) -> None:
        if name == "merged":
            recorded.extend(path.name for path in (tmp_path / "work").rglob("*.npy"))
            raise OSError(errno.ENOSPC, "the disk is full")
        record(self, name, model, title)

    monkeypatch.setattr(TransformersPasses, "_record", full)
    run = finished.copy(tmp_path / "run")
    (tmp_path / "work").mkdir()
    with EarlyHalf(run, quick(finished), tmp_path / "work", ConvertedFile(tmp_path / "none")) as early:
        assert early.examination() is None
        assert {"trained.npy", "base.npy", "wide.npy"} <= set(recorded)
        assert list((tmp_path / "work").iterdir()) == []


def test_the_end_of_the_block_ends_it_between_two_models(
    finished_runs: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, begun, go_on = finished_runs["phi3"], threading.Event(), threading.Event()
    record, recorded = TransformersPasses._record, []

    def slow(self: TransformersPasses, name: str, model: object, title: str) -> None:
        begun.set()
        assert go_on.wait(60)
        recorded.append(name)
        record(self, name, model, title)

    monkeypatch.setattr(TransformersPasses, "_record", slow)
    run = finished.copy(tmp_path / "run")
    (tmp_path / "work").mkdir()
    never = ConvertedFile(tmp_path / "none")
    with pytest.raises(KeyError), EarlyHalf(run, quick(finished), tmp_path / "work", never) as early:  # noqa: PT012
        assert begun.wait(60)
        stop = early._stop
        Background(lambda: stop.wait(60) and go_on.set())
        raise KeyError
    assert recorded == ["trained"]
    assert early.examination() is None


def test_the_end_of_the_block_ends_it_between_two_tensors(
    finished_runs: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[str]
) -> None:
    """The comparison of the merged weights takes minutes for a large model."""
    finished, looking, asked = finished_runs["phi3"], threading.Event(), []

    def looked(stop: threading.Event | None) -> None:
        looking.set()
        asked.append(stop is not None and stop.wait(60))
        stop_if_asked(stop)

    monkeypatch.setattr(merged_checks, "stop_if_asked", looked)
    run = finished.copy(tmp_path / "run")
    (tmp_path / "work").mkdir()
    never = ConvertedFile(tmp_path / "none")
    with pytest.raises(KeyError), EarlyHalf(run, quick(finished), tmp_path / "work", never) as early:  # noqa: PT012
        assert looking.wait(60)
        raise KeyError
    assert early.examination() is None
    assert asked == [True]
    assert passes == []


def test_a_check_does_not_begin_after_the_end() -> None:
    checks, stop = Checks(), threading.Event()
    checks.stop = stop
    with checks.check(Bilingual.same("before"), "merge"):
        stop.set()
    with pytest.raises(InterruptedError), checks.check(Bilingual.same("after"), "merge"):
        raise AssertionError
    assert [check.name.english for check in checks.done] == ["before"]


def test_run_begins_it_beside_the_export_on_a_gpu(
    quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[str]
) -> None:
    """A CPU stands in for the GPU. The conversion waits here until the first half is done; without one, for ever.

    Then the quantized file's first answer waits until llama.cpp has run the f16 file.
    """
    small = {"max_steps": 2, "keep_windows": 8, "warmup_steps": 1, "annealing_steps": 1, "batch_size": 2}
    config = TrainConfig(base_model=str(quick_base), device="cpu", max_length=32, **small)
    settings = VerifyConfig(tokens=128, threads=1, device="cpu")
    done, take, convert_now = threading.Event(), Examination.take_half, export.convert

    def taken(self: Examination, stop: threading.Event) -> None:
        take(self, stop)
        done.set()

    def patient(*arguments: object, **options: object) -> None:
        assert done.wait(120)
        convert_now(*arguments, **options)  # type: ignore[arg-type]

    ran, run_file, check = threading.Event(), LlamaPasses._pass, export.check_answers

    def noted(self: LlamaPasses, name: str, runtime: Runtime) -> tuple[Recording, bool]:
        found = run_file(self, name, runtime)
        ran.set()
        return found

    def late(gguf: Path) -> None:
        assert ran.wait(120)
        check(gguf)

    monkeypatch.setattr(LlamaPasses, "_pass", noted)
    monkeypatch.setattr(export, "check_answers", late)
    monkeypatch.setattr(Examination, "take_half", taken)
    monkeypatch.setattr(export, "convert", patient)
    monkeypatch.setattr(all_stages, "early_half", EarlyHalf)
    _, verdict = run_all(config, MergeConfig(), ExportConfig(), settings, Run(tmp_path / "run"))
    assert verdict.failed_stage is None
    assert len(passes) == 1


def test_without_a_gpu_there_is_none(tmp_path: Path) -> None:
    with early_half(Run(tmp_path), VerifyConfig(device="cpu"), tmp_path, ConvertedFile(tmp_path / "none")) as early:
        assert early is None
