"""Every text that ends a command, made from realistic reports, and the English words in a text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from aegis.cli.screens import plan as screens_plan
from aegis.cli.screens import results, verify
from aegis.cli.screens import runs as screens_runs
from aegis.cli.screens import study as screens_study
from aegis.config.train_settings import TrainConfig
from aegis.data.report import DataReport
from aegis.doctor import Finding
from aegis.messages import Bilingual, bilingual
from aegis.model.lora_targets import Coverage
from aegis.report.answers import Answer, ModelAnswers
from aegis.runs.listing import RunSummary
from aegis.runs.space_needs import Need
from aegis.stages.export import ExportReport
from aegis.stages.import_soul import ImportReport
from aegis.stages.merge import MergeReport
from aegis.stages.plan import PlanReport
from aegis.stages.plan_verify import VerifyOutlook
from aegis.stages.push import PushReport
from aegis.stages.quantize_study import StudyReport
from aegis.stages.verify_file import FileReport
from aegis.training.memory import MemoryParts
from aegis.training.planning.finish_bytes import FinishPlan
from aegis.training.planning.memory_parts import Estimate
from aegis.training.planning.offload_or_checkpoint import MemoryPlan
from aegis.training.train_report import TrainReport
from aegis.verification.findings import BaseRetention, Bounds, Check, Divergence
from aegis.verification.study.result import Importance, Measured, NotBuilt, Reference, Speed, Study
from aegis.verification.verdict import BaseComparison, Nearness, Step, Verdict

RUN = Path("artifacts/mine")
SETTINGS = TrainConfig(base_model="AXCXEPT/Borea-Phi-3.5-mini-Instruct-Jp", dataset="mine.jsonl", device="cpu")
_GIB = 1 << 30
_COMMANDS = re.compile(r"`[^`]*`|\b(aegis|ollama|llama-server|pip|sudo|unset|export|python[\d.]*) [^。）]*|\S*/\S*")
_SENTENCE = re.compile(r"(?<![\w-])[A-Za-z][a-z']+;? [a-z']{2,}")


def english_in(text: str) -> list[str]:
    """Return two English words in a row, without commands and paths; in Japanese they show an untranslated sentence."""
    return [found.group() for line in text.splitlines() for found in _SENTENCE.finditer(_COMMANDS.sub("", line))]


def finding_lines() -> list[Finding]:
    return [
        Finding("python", "ok", "3.11.7"),
        Finding("kernel", "warn", "http://127.0.0.1:11434", "ollama serve"),
        Finding("torch", "fail", "2.11.0", "pip install torch"),
    ]


def verdict() -> Verdict:
    """Return a verdict with everything that one can have."""
    near = Divergence(1.21e-07, 1.13e-06, 4.70e-06, 1.0, 0.0126)
    far = Divergence(1.48e-02, 1.75e-01, 5.19e-01, 0.9614, 4.0666)
    return Verdict(
        tokens=2048,
        checks=(
            Check(
                bilingual("structure.files", folder="adapter"), "train", True, bilingual("structure.tensors", count=3)
            ),
            Check(bilingual("verify.orthogonal"), "train", True, Bilingual("", "")),
        ),
        steps=(
            Step("trained → wide", "merge", far),
            Step("wide → merged", "merge", near, Bounds(mean_kl=1e-4), rounding=True),
            Step("f16 → Q4_K_M", "quantize", far),
        ),
        perplexity={"trained": 4.95, "wide": 4.91, "Q4_K_M": 4.975},
        retained=(
            BaseRetention("kept", 2048, 0.021, 0.019, 2.31, 2.33, 2.31, 2.32, 1.0, 1.02, max_kl=0.05),
            BaseRetention("other", 2048, 0.31, 0.29, 1.914, 3.474, 1.914, 3.27, 1.0, 1.27),
        ),
        summary=bilingual(
            "retention.answers_and_knows",
            answers=bilingual("retention.alike", kl=0.021, text=bilingual("retention.kept")),
            knows=bilingual("retention.better", text=bilingual("retention.your_text"), nats=0.5),
        ),
        bases=(BaseComparison("original", True, far, 4.91), BaseComparison("dequantized", False, near, 4.95)),
        nearness=(Nearness("Q4_K_M", 1.8e-2, 0.42, 1.4e-2, 6e-3),),
        vocab_size=32064,
    )


def failed_verdict() -> Verdict:
    wrong = Step("wide → merged", "merge", Divergence(0.3, 0.4, 0.5, 0.6, 7.0), Bounds(mean_kl=1e-4), True)
    spoilt = Check(bilingual("alone.file", name="a"), "train", False, Bilingual.same("adapter.safetensors"))
    far = replace(verdict().retained[0], max_kl=0.02)
    return replace(verdict(), checks=(spoilt,), steps=(wrong,), retained=(far,), summary=None, bases=())


def study_report() -> StudyReport:
    found = Divergence(1.48e-02, 1.75e-01, 5.19e-01, 0.9614, 4.0666)
    small = Measured("Q4_K_M", "plain", 2_390_000_000, "a", found, 4.975, Speed(212, 11.3))
    same = replace(small, variant="imatrix+head-q8_0", bytes=2_490_000_000, same_as="imatrix")
    study = Study(
        tokens=2048,
        tolerance=0.02,
        reference=Reference(7_640_000_000, "b", 4.91, Speed(120, 5.2)),
        measured=(small, same),
        left=(NotBuilt("IQ2_M", "plain", "needs_imatrix"),),
        importance=Importance("c", "d", 65536, 512),
    )
    return StudyReport(RUN / "study", "mine", 2, 9_600_000_000, study)


def plan_report() -> PlanReport:
    estimate = Estimate(
        weights=2_600_000_000,
        adapter=38_000_000,
        soul=54_000,
        gradients=38_000_000,
        optimizer=76_000_000,
        activations=1_900_000_000,
        head_and_loss=410_000_000,
        workspace=33_000_000,
    )
    return PlanReport(
        base="AXCXEPT/Borea-Phi-3.5-mini-Instruct-Jp",
        revision="c0ffee" + "0" * 34,
        folder="/models/borea",
        here=False,
        model_type="phi3",
        parameters=3_821_079_552,
        base_bytes=2_600_000_000,
        data=DataReport("mine.jsonl", "e", 40, 36, 4, 0, 0, 0, 12_345, 6_789, 25, 2, 0),
        data_missing="",
        targets=(Coverage("qkv_proj", 32, 3072, 9216, 6_291_456), Coverage("o_proj", 32, 3072, 3072, 3_145_728)),
        adapter_parameters=9_437_184,
        soul_parameters=10_752,
        device="NVIDIA GeForce RTX 3060",
        free_bytes=11 * _GIB,
        cap_bytes=None,
        layers=32,
        compiled=True,
        variants=(
            MemoryPlan(512, 0, False, True, estimate),
            MemoryPlan(256, 0, False, False, estimate),
            MemoryPlan(
                1024, 0, False, False, replace(estimate, activations=9 * _GIB), host_bytes=_GIB, offloaded_layers=10
            ),
            MemoryPlan(512, 32, True, False, estimate, host_bytes=_GIB),
        ),
        needs=(
            Need("disk_run", 18_000_000_000, 9_000_000_000, str(RUN)),
            Need("disk_scratch", 3_100_000_000, 90_000_000_000, "/tmp"),
            Need("gpu_memory_verify", 7_600_000_000, None),
            Need("ram_training", _GIB, 16_000_000_000),
            Need("ram_verify", 15_200_000_000, 16_000_000_000),
            Need("disk_download", 7_600_000_000, 90_000_000_000, "/hub"),
        ),
        steps=500,
        passes=20.0,
        tokens=256_000,
        flops_per_token=1.5e10,
        flops_per_second=4.2e13,
        finish=FinishPlan(200, "Q4_K_M", 2_415_919_104, 201.3, 2),
    )


def run_summaries() -> list[RunSummary]:
    return [
        RunSummary(Path("artifacts/demo"), "exported", 400, 1.31, 61_000_000, "proven"),
        RunSummary(Path("artifacts/mine"), "training", 120, None, 240_000_000, "none"),
        RunSummary(Path("artifacts/Borea-Phi-3.5-mini-Instruct-Jp"), "merged", 500, 1.29, 7_900_000_000, "outdated"),
    ]


def every_screen(columns: int | None = None) -> dict[str, str]:
    """Return all texts by name; with `columns`, wrapped for a terminal of that width."""
    memory = MemoryParts(2 * _GIB, 38 << 20, 1 << 20, 38 << 20, 76 << 20, _GIB, 4 * _GIB)
    trained = TrainReport(
        RUN / "adapter", 500, 500, 22.5, 0, 1.2, 1.3, 0.02, 1.618, 0.8345, 9_447_936, 1, 812.5, 21.0, memory
    )
    merged = MergeReport(RUN / "merged", 195, 7_640_000_000, 64, 0.8345, True)
    exported = ExportReport(RUN / "gguf", "mine", (Path(__file__),), 4096, 9_600_000_000)
    soul = ImportReport(Path("soul.safetensors"), 3072, 500, 1.618, 0.8345, True)
    need = Need("disk_scratch", 3_100_000_000, 90_000_000_000, "/scratch")
    outlook = VerifyOutlook(("trained", "wide", "Q4_K_M"), 2048, need, Need("ram_verify", 15_200_000_000, None))
    unsound = (
        Check(bilingual("alone.file", name="a"), "train", True, bilingual("alone.hash_as_published")),
        Check(bilingual("merged.tensors"), "merge", False, Bilingual.same("model.safetensors\nlm_head.weight")),
    )
    plan, study = plan_report(), study_report()
    assert study.study is not None
    return {
        "doctor": results.diagnosed(finding_lines(), columns),
        "doctor, warned": results.diagnosed(finding_lines()[:2], columns),
        "doctor, ready": results.diagnosed(finding_lines()[:1], columns),
        "init": results.initialised(Path("aegis.toml")),
        "train": results.trained(trained, RUN),
        "train, nothing measured": results.trained(replace(trained, loss=None, heldout_loss=None), RUN),
        "train --dry-run": results.dry_run(trained, SETTINGS),
        "merge": results.merged(merged, RUN),
        "merge, tied": results.merged(replace(merged, untied=False), None),
        "merge --dry-run": screens_plan.merge_planned(merged),
        "import-soul": results.imported(soul),
        "import-soul, rotation": results.imported(replace(soul, reflection=False)),
        "export": results.exported(exported),
        "export --dry-run": screens_plan.export_planned(exported),
        "push": results.pushed(PushReport("o/n", "https://huggingface.co/o/n", "gguf", ("m.gguf",), False)),
        "push --dry-run": results.would_be_pushed(PushReport("o/n", "https://hf", "gguf", ("m.gguf",), True)),
        "serve": results.serving("http://127.0.0.1:8080", ["m", "base"], 4096),
        "watch": results.watched("http://127.0.0.1:8081", RUN),
        "run": results.before_and_after(
            ["春の花は?"],
            [
                ModelAnswers("base", "", (Answer("桜です。"),)),
                ModelAnswers("gguf", "Q4_K_M", (Answer("桜でござる。"),)),
            ],
        ),
        "verify": verify.verified(verdict(), RUN / "verify", columns),
        "verify, failed": verify.verified(failed_verdict(), RUN / "verify", columns),
        "verify PATH": verify.examined(FileReport(Path("merged"), "model_folder", unsound)),
        "verify PATH, sound": verify.examined(FileReport(Path("m.gguf"), "gguf", unsound[:1])),
        "verify --dry-run": screens_plan.verify_planned(outlook),
        "plan": screens_plan.planned(plan, SETTINGS, columns),
        "plan, no GPU": screens_plan.planned(
            replace(
                plan,
                device="GPU",
                here=True,
                free_bytes=None,
                flops_per_second=None,
                data=None,
                data_missing="owner/data",
            ),
            SETTINGS,
            columns,
        ),
        "plan, capped": screens_plan.planned(replace(plan, cap_bytes=3 * _GIB), SETTINGS, columns),
        "plan, no GPU, capped": screens_plan.planned(
            replace(plan, device="GPU", free_bytes=None, cap_bytes=3 * _GIB), SETTINGS, columns
        ),
        "plan, CPU": screens_plan.planned(
            replace(plan, device="CPU", revision=None, flops_per_second=4.2e10), SETTINGS, columns
        ),
        "plan, quick": screens_plan.planned(replace(plan, tokens=2560, flops_per_second=4.2e13), SETTINGS, columns),
        "quantize-study --dry-run": screens_study.planned(study),
        "quantize-study": screens_study.studied(study, study.study, RUN, columns),
        "list": screens_runs.listed(run_summaries(), columns),
    }
