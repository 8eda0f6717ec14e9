"""The texts of verify: for a complete run, and for one part alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aegis.messages import phrase
from aegis.messages.layout import fold, paint, table, terminal_columns, wrap
from aegis.messages.safe import shell_word
from aegis.runs.run import REPORT

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from aegis.stages.verify_file import FileReport
    from aegis.verification.findings import BaseRetention, Check, Divergence
    from aegis.verification.verdict import Verdict


def verified(verdict: Verdict, folder: Path, columns: int | None = None) -> str:
    """After verify: all checks, all steps between two models, how much of the base was kept, and a line of verdict."""
    lines = [_checked(check, columns) for check in verdict.checks]
    if verdict.steps:
        lines += ["", *_steps(verdict, columns)]
    if verdict.perplexity:
        values = "  ".join(f"{name} {_perplexity(value, verdict)}" for name, value in verdict.perplexity.items())
        lines += ["", wrap(f"{phrase('screens_verify.perplexity')}  ", values, columns)]
    if verdict.bases:
        lines += ["", *_bases(verdict, columns)]
    below = [line for retained in verdict.retained for line in _retained(retained, verdict)]
    below += ["", phrase("screens_verify.report", path=folder / REPORT)]
    if verdict.failed_stage is None:
        proven, *rest = _headline(verdict)
    else:
        below += [_first_line(failure) for failure in verdict.failures]
        proven, rest = phrase("screens_verify.not_proven", failed_stage=verdict.failed_stage), []
    if verdict.summary is not None:
        rest.append(verdict.summary.shown)
    lines += [fold(line, columns) for line in below]
    lines.append(paint(fold(proven, columns), "good" if verdict.failed_stage is None else "bad"))
    return "\n".join([*lines, *(fold(line, columns) for line in rest)])


def _headline(verdict: Verdict) -> list[str]:
    """Return the lines on what is proven, what is measured, and what is neither."""
    files = ", ".join(near.name for near in verdict.nearness)
    lines = [phrase("screens_verify.proven", files=files)]
    for near in verdict.nearness:
        key = "screens_verify.measured" if near.nearer else "screens_verify.measured_further"
        lines.append(phrase(key, name=near.name, shipped=near.shipped, base=near.base, tokens=verdict.tokens))
    left_open = [part.shown for part in verdict.left_open]
    for near in verdict.nearness[:1]:
        if near.widening >= near.base:
            left_open.append(phrase("screens_verify.widening", widening=near.widening, base=near.base))
    return [*lines, phrase("screens_verify.neither", more="".join(f"; {text}" for text in left_open))]


def _perplexity(value: float, verdict: Verdict) -> str:
    """Return a perplexity, or a note if it is no better than a guess among all tokens."""
    if verdict.vocab_size and value >= verdict.vocab_size:
        return phrase("screens_verify.no_better_than_chance", vocab_size=verdict.vocab_size)
    return f"{value:.3f}"


def _checked(check: Check, columns: int | None) -> str:
    state, name, detail = ("ok  " if check.ok else "FAIL"), check.name.shown, _first_line(check.detail.shown)
    line = wrap(f"{state}  {name}  ", detail, columns).rstrip()
    return paint(state, "good" if check.ok else "bad") + line[len(state) :]


def _steps(verdict: Verdict, columns: int | None) -> list[str]:
    heads = [
        phrase("screens_verify.models"),
        *_divergence_heads(),
        phrase("screens_verify.max_delta"),
        phrase("screens_verify.bound"),
    ]
    rows = []
    for step in verdict.steps:
        bound = "-" if step.bounds.mean_kl is None else f"{step.bounds.mean_kl:.0e}"
        rows.append([step.name, *_divergence(step.found), f"{step.found.max_delta:.4f}", bound])
    head, *lines = table(heads, rows, columns)
    marks = ["" if step.ok else f"  {paint('FAIL', 'bad')}" for step in verdict.steps]
    return [*filter(None, [head]), *(line + mark for line, mark in zip(lines, marks, strict=True))]


def _bases(verdict: Verdict, columns: int | None) -> list[str]:
    heads = [
        phrase("screens_verify.trained_merged"),
        *_divergence_heads(),
        phrase("screens_study.perplexity"),
    ]
    rows = []
    for choice in verdict.bases:
        if choice.merged:
            name = phrase("screens_verify.weights_of_this_run", name=choice.name)
        else:
            name = phrase("screens_verify.weights", name=choice.name)
        rows.append([name, *_divergence(choice.found), f"{choice.perplexity:.3f}"])
    return [line for line in table(heads, rows, columns) if line]


def _divergence_heads() -> list[str]:
    return [phrase("screens_verify.mean_kl"), "99 %", phrase("screens_verify.max"), "top-1"]


def _divergence(found: Divergence) -> list[str]:
    return [f"{found.mean_kl:.2e}", f"{found.p99_kl:.2e}", f"{found.max_kl:.2e}", f"{found.top1:.2%}"]


def _retained(kept: BaseRetention, verdict: Verdict) -> list[str]:
    text = kept.name.shown
    if verdict.vocab_size and kept.base >= verdict.vocab_size:
        return [phrase("screens_verify.unreadable", text=text, vocab_size=verdict.vocab_size)]
    tempered = phrase(
        "screens_verify.tempered",
        base=kept.base_tempered,
        base_temperature=kept.base_temperature,
        result=kept.result_tempered,
        result_temperature=kept.result_temperature,
        kl=kept.kl_tempered,
    )
    retained = phrase("screens_verify.retained", text=text, base=kept.base, result=kept.result, kl=kept.kl)
    lines = [retained + ("" if kept.ok else "  FAIL"), f"  {tempered}"]
    if kept.lost > 0:
        by_temperature = kept.lost - kept.lost_tempered
        lines.append(f"  {phrase('screens_verify.lost', lost=kept.lost, by_temperature=by_temperature)}")
    return lines


def examined(found: FileReport) -> str:
    """After verify PATH: every check, one line of verdict."""
    lines = [f"{shell_word(found.path)}: {phrase(f'kind.{found.kind}')}"]
    for check in found.checks:
        lines.append(_checked(check, terminal_columns()))
        lines += [] if check.ok else [f"        {line}" for line in check.detail.shown.splitlines()[1:]]
    if found.failed_stage is None:
        end = phrase("screens_verify.sound")
    else:
        end = phrase("screens_verify.not_sound", failed_stage=found.failed_stage)
    return "\n".join([*lines, fold(end, terminal_columns())])


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
