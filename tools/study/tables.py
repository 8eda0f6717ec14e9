"""The study's results as one JSON file and one Markdown table per domain, with paired intervals over the seeds.

    PYTHONPATH=pipeline:.:tools python -m study.tables OUT/study.json

makes OUT/study.json the published results (tools/study/results.json) and writes their tables into tools/README.md.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark import measured_on

from study.cells import CELLS, DEFAULTS

REFERENCE = "LoRA alone"
PUBLISHED = Path(__file__).with_name("results.json")
README = Path(__file__).parents[1] / "README.md"
_TABLES = re.compile(r"(<!-- study -->\n).*?(<!-- end of study -->)", re.DOTALL)
_NOTICEABLE = 0.005
"""Nats per token: where rounding costs less, there is nothing to give back."""
_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t for 95 %, two-sided, by the number of seeds."""


def write(out: Path) -> None:
    """Gather OUT/cells into OUT/study.json and OUT/study.md."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "cells").glob("*.json"))]
    results = [row for row in rows if "cell" in row]
    bases = {path.name.split(".")[1]: json.loads(path.read_text()) for path in (out / "cells").glob("base.*.json")}
    document = {**measured_on(), "bases": bases, "results": results}
    (out / "study.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / "study.md").write_text("\n".join(markdown(document)) + "\n", encoding="utf-8")


def publish(document: Mapping[str, Any]) -> None:
    """Make results the published ones, one training per line."""
    results = ",\n".join(json.dumps(row, ensure_ascii=False) for row in document["results"])
    rest = {name: value for name, value in document.items() if name != "results"}
    text = f'{json.dumps(rest, ensure_ascii=False)[:-1]}, "results": [\n{results}\n]}}\n'
    PUBLISHED.write_text(text, encoding="utf-8", newline="\n")
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


def with_tables(text: str) -> str:
    """Return tools/README.md's text with the tables of the published results."""
    tables = "\n".join(markdown(json.loads(PUBLISHED.read_text(encoding="utf-8"))))
    return _TABLES.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", text)


def markdown(document: Mapping[str, Any]) -> list[str]:
    """One table per domain, in nats per token."""
    lines: list[str] = []
    for domain, base in document["bases"].items():
        rows = [row for row in document["results"] if row["domain"] == domain]
        lines += [
            f"Domain {domain}, nats per token (mean over the seeds; difference from {REFERENCE}, 95 % interval)",
            "",
        ]
        lines += ["| trained | seeds | new domain | difference | KL(base ‖ trained) | other text | T | ECE | s |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        lines += [
            f"| nothing (base) | | {_base_loss(base, rows):.3f} | | 0 | {base['other']['loss']:.3f} | "
            f"{base['new']['temperature']:.2f} | {base['new']['calibration_error']:.3f} | |"
        ]
        lines += [_row(cell, rows) for cell in CELLS if any(row["cell"] == cell for row in rows)]
        lines += ["", *_files(domain, base, rows)]
    return lines


def _files(domain: str, base: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table about the quantized files: what rounding costs, and what a finish gives back of it."""
    if not any("shipped" in row for row in rows):
        return []
    lines = [f"Domain {domain}, quantized files, nats per token (mean over the seeds, 95 % interval)", ""]
    lines += [
        "| trained | file | seeds | new domain | lost by rounding | given back | KL(base ‖ file) | times | other text |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for quant, found in base.get("shipped", {}).items():
        lost = found["new"]["loss"] - base["new"]["loss"]
        kl, other = found["kept"]["kl"], found["other"]["loss"]
        lines.append(
            f"| nothing (base) | {quant} | | {found['new']['loss']:.3f} | {lost:+.3f} | | {kl:.4f} | | {other:.3f} |"
        )
    plain = {row["seed"]: row for row in rows if row["cell"] == DEFAULTS}
    for cell in CELLS:
        ours = [row for row in rows if row["cell"] == cell and "shipped" in row]
        lines += [_file(cell, quant, ours, plain) for quant in (ours[0]["shipped"] if ours else ())]
    return [*lines, ""]


def _file(cell: str, quant: str, ours: Sequence[Mapping[str, Any]], plain: Mapping[int, Mapping[str, Any]]) -> str:
    """The row of one file: what it lost and gives back is counted from the defaults' training, before rounding."""
    losses = [_at(row, ("shipped", quant, "new", "loss")) for row in ours]
    lost, given, shares = [], [], []
    for row, loss in zip(ours, losses, strict=True):
        reference = plain.get(row["seed"])
        if reference is None or quant not in reference.get("shipped", {}):
            continue
        unrounded = reference["new"]["loss"]
        lost.append(loss - unrounded)
        cost = _at(reference, ("shipped", quant, "new", "loss")) - unrounded
        shares.append(_at(row, ("shipped", quant, "kept", "kl")) / _at(reference, ("shipped", quant, "kept", "kl")))
        if cost > _NOTICEABLE:
            given.append(1 - (loss - unrounded) / cost)
    kl = statistics.mean(_at(row, ("shipped", quant, "kept", "kl")) for row in ours)
    other = statistics.mean(_at(row, ("shipped", quant, "other", "loss")) for row in ours)
    return (
        f"| {cell} | {quant} | {len(ours)} | {statistics.mean(losses):.4f} | {_interval(lost)} "
        f"| {'' if cell == DEFAULTS else _interval(given, '+.2f')} | {kl:.4f} "
        f"| {'' if cell == DEFAULTS else _interval(shares, '.2f')} | {other:.3f} |"
    )


def _base_loss(base: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float:
    """The base's loss on what the seeds of the reference hold out."""
    losses = [_at(row, ("base_new", "loss")) for row in rows if row["cell"] == REFERENCE and "base_new" in row]
    return statistics.mean(losses) if losses else float(base["new"]["loss"])


def _row(cell: str, rows: Sequence[Mapping[str, Any]]) -> str:
    ours = {row["seed"]: row for row in rows if row["cell"] == cell}
    reference = {row["seed"]: row for row in rows if row["cell"] == REFERENCE}

    def mean(*keys: str) -> float:
        return statistics.mean(_at(row, keys) for row in ours.values())

    pairs = [ours[seed]["new"]["loss"] - reference[seed]["new"]["loss"] for seed in ours if seed in reference]
    return (
        f"| {cell} | {len(ours)} | {mean('new', 'loss'):.4f} | {_interval(pairs)} | {mean('kept', 'kl'):.4f} "
        f"| {mean('other', 'loss'):.3f} | {mean('new', 'temperature'):.2f} | {mean('new', 'calibration_error'):.3f} "
        f"| {mean('seconds'):.0f} |"
    )


def _interval(differences: Sequence[float], form: str = "+.4f") -> str:
    if not differences:
        return ""
    middle = statistics.mean(differences)
    if len(differences) not in _T95:
        return f"{middle:{form}}"
    half = _T95[len(differences)] * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{middle:{form}} ± {half:{form.lstrip('+')}}"


def _at(row: Mapping[str, Any], keys: Sequence[str]) -> float:
    value: Any = row
    for key in keys:
        value = value[key]
    return float(value)


if __name__ == "__main__":
    publish(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
