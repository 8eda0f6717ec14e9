"""Tests of aegis run: the stages run in order, and an export that fails its proof is not published."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aegis import run_all as all_stages
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import IntegrityError, Interrupted, LockedError, UsageError
from aegis.run_all import run_all
from aegis.runs import known_hashes
from aegis.runs.run import Run
from aegis.stages import export
from aegis.stages.verify import verify
from aegis.verification import structure
from aegis.verification.verdict import read_report
from tests.conftest import Recorder

pytestmark = pytest.mark.usefixtures("unpainted")

QUICK = VerifyConfig(tokens=128, threads=1, device="cpu")


def short(base: Path) -> tuple[TrainConfig, MergeConfig, ExportConfig]:
    """Return the settings of two small steps."""
    small = {"max_steps": 2, "keep_windows": 8, "warmup_steps": 1, "annealing_steps": 1, "batch_size": 2}
    return TrainConfig(base_model=str(base), device="cpu", max_length=32, **small), MergeConfig(), ExportConfig()


def test_an_export_that_fails_its_proof_is_not_left_at_its_name(
    quick_base: Path, tmp_path: Path, reporter: Recorder
) -> None:
    """Under a bound that no quantization can keep: exit 5, the files aside. Without it, the same run is proven."""
    run, configs = Run(tmp_path / "run"), short(quick_base)
    with pytest.raises(IntegrityError, match="the fault is in quantize") as caught:
        run_all(*configs, QUICK.model_copy(update={"max_kl_quantized": 1e-12}), run)
    assert "f16 → Q4_K_M" in caught.value.why
    assert caught.value.exit_code == 5
    assert not run.gguf.exists()
    assert list((run.root / "gguf.failed").glob("*-Q4_K_M.gguf"))
    assert read_report(run.verify / "report.json")["failed_stage"] == "quantize"

    mine = run.unproven_gguf / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(UsageError) as refused:
        run_all(*configs, QUICK, run)
    assert refused.value.key == "foreign.files"
    assert mine.read_text() == "mine"
    mine.unlink()

    reporter.messages.clear()
    exported, verdict = run_all(*configs, QUICK, run)
    kept = [text for text in reporter.messages if "was made like this before" in text]
    assert kept == [f"  {place} was made like this before, and is kept" for place in (run.adapter, run.merged)]
    assert verdict.failed_stage is None
    assert exported.files[0].parent == run.gguf
    assert exported.files[0].is_file()


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stage of every conversion to f16 that the real converter makes."""
    made: list[str] = []
    for stage, module in (("export", export), ("verify", structure)):

        def counting(*arguments: Any, stage: str = stage, convert: Any = module.convert, **options: Any) -> None:
            made.append(stage)
            convert(*arguments, **options)

        monkeypatch.setattr(module, "convert", counting)
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each weight file is read for its hash."""
    read: Counter[str] = Counter()
    noted = known_hashes.noted

    def counting(path: Path, fact: known_hashes.Fact) -> str | None:
        found = noted(path, fact)
        if fact == "sha256" and found is None and path.suffix in (".safetensors", ".gguf"):
            folder = path.parent.name.partition(".staging")[0].lstrip(".")
            read[f"{folder}/{path.name}"] += 1
        return found

    monkeypatch.setattr(known_hashes, "noted", counting)
    return read


def left_over(run: Run) -> list[Path]:
    return list(run.root.glob(".*.staging-*"))


def test_nothing_is_converted_or_hashed_twice_in_one_run(
    quick_base: Path, tmp_path: Path, conversions: list[str], hashed: Counter[str]
) -> None:
    """With --paranoid everything is; a verify alone converts again, to the same report. Nothing is left over."""
    run = Run(tmp_path / "run")
    (run.root / ".verify.staging-killed").mkdir(parents=True)
    (run.root / ".verify.staging-killed" / "F16.gguf").write_bytes(b"of a killed run")
    _, verdict = run_all(*short(quick_base), QUICK, run)
    assert verdict.failed_stage is None
    report = (run.verify / "report.json").read_bytes()
    assert conversions == ["export"]
    assert hashed
    assert set(hashed.values()) == {1}
    assert not left_over(run)

    conversions.clear()
    assert verify(run, QUICK).failed_stage is None
    assert conversions == ["verify"]
    assert (run.verify / "report.json").read_bytes() == report
    assert not left_over(run)

    conversions.clear()
    hashed.clear()
    shutil.rmtree(run.gguf)
    _, verdict = run_all(*short(quick_base), QUICK.model_copy(update={"paranoid": True}), run)
    assert verdict.failed_stage is None
    assert conversions == ["export", "verify"]
    assert max(hashed.values()) > 1
    assert not left_over(run)


def test_an_f16_file_that_changes_before_verify_is_converted_again(
    quick_base: Path, tmp_path: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and mtime are as before; and a quantized file changed like this is found, and its stage named."""
    run, places = Run(tmp_path / "run"), [lambda converted: converted, lambda _: run.first_gguf()]

    def changing(run: Run, config: VerifyConfig, *, converted: Path, early: None) -> Any:
        path = places.pop(0)(converted)
        before = path.stat()
        content = bytearray(path.read_bytes())
        content[-8] ^= 1
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return verify(run, config, converted=converted)

    monkeypatch.setattr("aegis.run_all.verify", changing)
    run_all(*short(quick_base), QUICK, run)
    assert conversions == ["export", "verify"]
    with pytest.raises(IntegrityError, match="the fault is in convert"):
        run_all(*short(quick_base), QUICK, run)
    assert not left_over(run)


def test_an_interrupted_run_leaves_no_f16_file(
    quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = Run(tmp_path / "run"), []

    def interrupted(_run: Run, _config: VerifyConfig, *, converted: Path, early: None) -> None:
        seen.append(converted.stat().st_size)
        raise KeyboardInterrupt

    monkeypatch.setattr("aegis.run_all.verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(*short(quick_base), QUICK, run)
    assert seen[0] > 100_000
    assert not left_over(run)
    assert not list(run.root.rglob("*F16.gguf"))


def test_nobody_else_gets_into_a_run_between_its_stages(
    quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge, export or verify of another process would take this one's unfinished files for a killed one's."""
    run, refused = Run(tmp_path / "run"), []

    def attempt() -> None:
        with pytest.raises(LockedError), run.lock():
            pytest.fail("two at once")

    def with_attempt(name: str, stage: Any) -> Any:
        def attempted(*given: Any, **more: Any) -> Any:
            with ThreadPoolExecutor(1) as other:
                other.submit(attempt).result()
            refused.append(name)
            return stage(*given, **more)

        return attempted

    for name in ("merge", "export_gguf", "verify"):
        monkeypatch.setattr(all_stages, name, with_attempt(name, getattr(all_stages, name)))
    run_all(*short(quick_base), QUICK, run)
    assert refused == ["merge", "export_gguf", "verify"]


def test_an_interrupted_run_says_to_start_the_same_command_again(
    quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`aegis train --resume` would train, and not merge, export or verify."""

    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("train.stopped", exit_code=130, done=1, stop=2)

    monkeypatch.setattr(all_stages, "train", stopped)
    with pytest.raises(Interrupted) as caught:
        run_all(*short(quick_base), QUICK, Run(tmp_path / "run"))
    assert "the same command" in caught.value.fix
    assert caught.value.exit_code == 130
