"""Makes the sections of a report's page from a run's manifests, metrics and verify's report; names missing parts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aegis.config.places import place_settings
from aegis.config.recorded import recorded_config
from aegis.config.settings import ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.config.stage_config import StageConfig
from aegis.errors import IntegrityError
from aegis.messages import Bilingual, Language, words
from aegis.report.card import ollama_name
from aegis.report.page import Section, Table
from aegis.report.plots.training import PICTURES
from aegis.report.values import as_number, as_text, public
from aegis.runs.disk import format_bytes
from aegis.runs.facts import AdapterFacts, DataFacts, ExportFacts, MergeFacts, VerifyFacts
from aegis.runs.facts_base import Facts
from aegis.runs.manifest import MANIFEST, Manifest, read_manifest
from aegis.runs.run import DIVERGENCE_PLOT, Run

_PARTS = {"training": "adapter", "merge": "merged", "export": "gguf", "verify": "verify"}

FactsOfStage = TypeVar("FactsOfStage", bound=Facts)


@dataclass
class RunParts:
    """The manifests and facts of a run's finished stages by label, and the reasons why others are missing."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    training: AdapterFacts | None = None
    merged: MergeFacts | None = None
    exported: ExportFacts | None = None

    @classmethod
    def of(cls, run: Run) -> RunParts:
        """Read the manifests of a run."""
        parts = cls()
        parts.training = parts._read(run, "training", AdapterFacts, TrainConfig)
        parts.merged = parts._read(run, "merge", MergeFacts, MergeConfig)
        parts.exported = parts._read(run, "export", ExportFacts, ExportConfig)
        parts._read(run, "verify", VerifyFacts, VerifyConfig)
        return parts

    def _read(self, run: Run, name: str, kind: type[FactsOfStage], settings: type[StageConfig]) -> FactsOfStage | None:
        folder = _PARTS[name]
        try:
            manifest = read_manifest(run.root / folder)
            facts = kind.of(manifest)
            recorded_config(manifest, settings)
        except IntegrityError as error:
            # a local path is private, so the page does not show it
            there = (run.root / folder / MANIFEST).is_file()
            self.missing[name] = f"{folder}/{MANIFEST}: {error.why}" if there else f"{folder}/"
            return None
        self.manifests[name] = manifest
        return facts

    def settings(self) -> dict[str, dict[str, str]]:
        """Return every stage's settings as text."""
        private = place_settings()
        return {
            name: {
                key: public(value) if key in private else as_text(value) for key, value in sorted(found.config.items())
            }
            for name, found in self.manifests.items()
        }

    @property
    def gguf_files(self) -> list[str]:
        """The names of the GGUF files; the file to run comes first."""
        if self.exported is None:
            return []
        return [name for name in self.exported.files.values() if name in self.manifests["export"].files]


def training_section(run: Run, parts: RunParts, rows: Sequence[Mapping[str, Any]], label: Mapping[str, str]) -> Section:
    """Make the section on the training: base, steps, losses, gate, speed and plots."""
    found = parts.training
    if found is None:
        return Section("training", {}, missing=parts.missing["training"])
    speeds = [row["tokens_per_second"] for row in rows if isinstance(row.get("tokens_per_second"), float)]
    peaks = [row["peak_bytes"] for row in rows if isinstance(row.get("peak_bytes"), int)]
    facts = {
        "base": public(found.base_model),
        "revision": as_text(found.revision),
        "steps": as_number(found.result.steps, ",.0f"),
        "loss": as_number(rows[-1].get("task_loss") if rows else None, ".4f"),
        "heldout_loss": as_number(found.result.heldout_loss, ".4f"),
        "keep_kl": _kept_value(found, label),
        "alpha": as_number(found.result.alpha, ".3f"),
        "gate": as_number(found.result.gate, ".4f"),
        "adapter_parameters": as_number(found.result.trainable_parameters, ",.0f"),
        "speed": label["speed_value"].format(speed=statistics.median(speeds)) if speeds else "-",
        "memory": format_bytes(max(peaks)) if peaks else "-",
    }
    pictures = [run.pictures / name for name in PICTURES if (run.pictures / name).is_file()]
    return Section("training", facts, pictures=pictures)


def _kept_value(found: AdapterFacts, label: Mapping[str, str]) -> str:
    if found.kept is None:
        return label["keep_off"]
    kept = found.kept
    return label["keep_value"].format(
        kl=as_number(found.result.keep_kl, ".4f"), windows=kept.windows, heldout=kept.heldout_windows
    )


def data_section(parts: RunParts) -> Section:
    """Make the section on the training data."""
    if parts.training is None:
        return Section("data", {}, missing=parts.missing["training"])
    found = parts.training.data
    facts = {
        "dataset": public(parts.manifests["training"].config.get("dataset", "-")),
        "rows": as_number(found.train_rows, ",.0f"),
        "heldout_rows": as_number(found.heldout_rows, ",.0f"),
        "tokens": as_number(found.tokens, ",.0f"),
        "trained_tokens": as_number(found.trained_tokens, ",.0f"),
        "passes": as_number(_passes(parts.manifests["training"].config, found), ".2f"),
        "truncated": as_number(found.truncated, ",.0f"),
        "sha256": found.content_sha256,
    }
    return Section("data", facts)


def _passes(config: Mapping[str, Any], data: DataFacts) -> float | None:
    """How often the training saw each window; a manifest counts the accumulation over all processes."""
    windows = (data.model_extra or {}).get("windows")
    per_step = config["batch_size"] * config["gradient_accumulation_steps"]
    return config["max_steps"] * per_step / windows if windows else None


def merge_section(parts: RunParts) -> Section:
    """Make the section on the merge."""
    merged = parts.merged
    if merged is None:
        return Section("merge", {}, missing=parts.missing["merge"])
    metadata, config = merged.origin.metadata, parts.manifests["merge"].config
    return Section(
        "merge",
        {
            "base_weights": as_text(config.get("base_weights")),
            "dtype": as_text(config.get("dtype")),
            "rotation": merged.rotation,
            "alpha": as_number(merged.alpha, ".3f"),
            "gate": as_number(merged.gate, ".4f"),
            "licence": as_text(metadata.get("license_name") or metadata.get("license")),
        },
    )


def export_section(parts: RunParts) -> Section:
    """Make the section on the GGUF files."""
    exported = parts.exported
    if exported is None:
        return Section("export", {}, missing=parts.missing["export"])
    manifest = parts.manifests["export"]
    rows = [(name, f"{manifest.files[name].bytes:,}") for name in parts.gguf_files]
    return Section(
        "export",
        {
            "name": exported.name,
            "quants": as_text(manifest.config.get("quant")),
            "context": str(exported.context_tokens),
            "fallbacks": str(sum(map(len, exported.fallback_tensors.values()))),
        },
        [Table(("name", "bytes"), rows, frozenset({1}))],
    )


def verify_section(
    run: Run, parts: RunParts, report: Mapping[str, Any] | None, why: str, language: Language
) -> Section:
    """Make the section on verify: its tables and its plot."""
    label = words("page", language)
    if report is None:
        return Section("verify", {}, missing=parts.missing.get("verify", why))
    facts = {"tokens": as_number(report.get("tokens"), ",.0f")}
    values = report.get("perplexity") or {}
    if values:
        facts["perplexity"] = ", ".join(f"{name} {as_number(value, '.3f')}" for name, value in values.items())
    for found in report.get("retained") or []:
        losses = ("base", "result", "base_tempered", "result_tempered")
        numbers = {name: as_number(found.get(name), ".3f") for name in losses} | {"kl": as_number(found["kl"], ".2g")}
        facts[found["text"]] = label["retained_value"].format(**numbers)
    if summary := report.get("summary"):
        facts["summary"] = Bilingual.from_record(summary).in_language(language)
    steps = [
        (
            step["name"],
            *(as_number(step["found"].get(name), ".2e") for name in ("mean_kl", "p99_kl", "max_kl")),
            as_number(step["found"].get("top1"), ".2%"),
            as_number(step["found"].get("max_delta"), ".4f"),
            as_number(step.get("max_kl"), ".0e"),
        )
        for step in report.get("steps") or []
    ]
    checks = []
    for check in report.get("checks") or []:
        name, detail = (Bilingual.from_record(check[text]).in_language(language) for text in ("name", "detail"))
        # the first line is enough for a check that passed
        checks.append(("ok", name, detail.partition("\n")[0]) if check["ok"] else ("FAIL", name, detail))
    tables = [
        Table(("models", "mean_kl", "p99_kl", "max_kl", "top1", "max_delta", "bound"), steps, frozenset(range(1, 7)))
    ]
    tables.append(Table(("result", "check", "detail"), checks))
    picture = run.verify / DIVERGENCE_PLOT
    return Section("verify", facts, tables, [picture] if picture.is_file() else [])


def before_and_after(report: Mapping[str, Any] | None) -> str:
    """Return the perplexities of the base and of the file to run, on the same held-out text."""
    values = list(((report or {}).get("perplexity") or {}).items())
    if not values or values[0][0] != "base":
        return "-"
    return f"{as_number(values[0][1], '.3g')} → {as_number(values[-1][1], '.3g')}"


def files_section(parts: RunParts) -> Section:
    """Make the section that lists every published file with its hash."""
    rows = [
        (f"{_PARTS[name]}/{file}", f"{record.bytes:,}", record.sha256)
        for name, manifest in parts.manifests.items()
        for file, record in manifest.files.items()
    ]
    return Section("files", {}, [Table(("name", "bytes", "sha256"), rows, frozenset({1}))])


def commands(parts: RunParts) -> list[str]:
    """Return the commands that run the GGUF; none without a GGUF."""
    files, exported = parts.gguf_files, parts.exported
    if exported is None or not files:
        return []
    name = ollama_name(exported.name)
    return [
        "cd gguf",
        f"ollama create {name} -f Modelfile",
        f"ollama run {name}",
        f'llama-server -m "{files[0]}" -c {exported.context_tokens} --jinja',
        f'aegis chat --gguf "{files[0]}"',
    ]
