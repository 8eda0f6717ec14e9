"""Tests of the texts that end a command: in both languages, with aligned columns and wrapped lines."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from aegis.cli.screens import plan as screens_plan
from aegis.doctor import finding
from aegis.messages import LANGUAGES, VARIABLE, Language, phrase, words
from aegis.messages.layout import cell_width
from aegis.runs import listing, space_needs
from aegis.stages import verify_file
from aegis.training.memory import MemoryParts
from aegis.training.planning.memory_parts import Estimate, ShardedWeights
from aegis.verification.study.result import NotBuilt
from tests.screen_texts import SETTINGS, english_in, every_screen, plan_report, study_report

GROUPS = (
    *(
        "doctor",
        "ending",
        "finding",
        "kind",
        "list_head",
        "memory",
        "need",
        "not_built",
        "screens",
    ),
    *("screens_plan", "screens_study", "screens_verify"),
)
VALUES = {"base", "trained", "adapter", "aegis", "GPU", "Hub", "Ollama", "Python", "ppl", "run", "torch", "triton"}
"""Words that stand in a report as they are: models, a speaker, programs and libraries."""


def labels(spoken: Language) -> set[str]:
    """Return the texts of one word, except those that are values too."""
    texts = (text for group in GROUPS for text in words(group, spoken).values())
    return {text for text in texts if re.fullmatch("[A-Za-z-]+", text)} - VALUES


def labels_in(text: str) -> set[str]:
    return labels("en") & {word.rstrip(":;,") for word in text.split()}


@pytest.fixture(params=LANGUAGES)
def spoken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Language:
    monkeypatch.setenv(VARIABLE, request.param)
    language: Language = request.param
    return language


def test_every_screen_is_japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a sentence nor a label is left in English; the control is the English screens, which all have some."""
    english = every_screen()
    monkeypatch.setenv(VARIABLE, "ja")
    for name, text in every_screen().items():
        assert (english_in(text), labels_in(text)) == ([], set()), name
        assert english_in(english[name]) or labels_in(english[name]), name


FOLDED = ("doctor", "plan", "verify", "quantize-study", "list")
WHOLE = ("Borea", "aegis export-gguf", "report.json", "study.png")
"""In lines that are not broken: the base's name on the Hub, a command to copy, and paths."""


@pytest.mark.parametrize("columns", [40, 80])
def test_folded_screens_fit_the_terminal(spoken: Language, columns: int) -> None:
    """The control: as they are for a file, some are wider."""
    for name, text in every_screen(columns).items():
        if name.startswith(FOLDED) and "--dry-run" not in name and "PATH" not in name:
            lines = [line for line in text.splitlines() if not any(word in line for word in WHOLE)]
            assert [line for line in lines if cell_width(line) > columns] == [], name
    assert max(cell_width(line) for line in every_screen()["verify"].splitlines()) > columns


def test_tables_are_folded_only_below_80_columns(spoken: Language) -> None:
    """A row per line, under one head; at 40 the head is beside each number."""
    heads = {"verify": f"{phrase('screens_verify.models')}  ", "list": f"{phrase('list_head.run')}  "}
    for name, head in heads.items():
        assert any(line.startswith(head) for line in every_screen(80)[name].splitlines()), name
        assert not any(line.startswith(head) for line in every_screen(40)[name].splitlines()), name


def table_of(text: str, words: str, count: int) -> list[str]:
    """Return `count` lines from the line that begins with `words`."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(words))
    return lines[start : start + count]


def test_columns_end_below_each_other(spoken: Language) -> None:
    """The numbers of every table, and the texts after the names of plan's lines."""
    shown = every_screen()
    steps = table_of(shown["verify"], phrase("screens_verify.models"), 4)
    bases = table_of(shown["verify"], phrase("screens_verify.trained_merged"), 3)
    study = table_of(shown["quantize-study"], f"  {phrase('screens_study.type')}", 3)
    memory = table_of(shown["plan"], phrase("screens_plan.checkpointed"), 12)
    measured = table_of(shown["train --dry-run"], f"  {phrase('memory.base')}", 7)
    for table in (steps, bases, study, memory, measured):
        assert len({cell_width(line) for line in table}) == 1, table
    start = phrase("screens_plan.need", needed="", free="", where="", short="")
    names = [line.partition(start)[0] for line in shown["plan"].splitlines() if " GB" in line]
    assert [cell_width(name) for name in names] == [cell_width(names[0])] * 6


def test_a_narrow_terminal_shows_the_comparisons_that_fit(spoken: Language) -> None:
    """Two beside the names at 40 columns, one at least however narrow it is."""
    for columns, planner in ((40, 2), (64, 4), (12, 1)):
        lines = screens_plan.planned(plan_report(), SETTINGS, columns).splitlines()
        (line,) = [line for line in lines if line.startswith(phrase("screens_plan.checkpointed"))]
        assert line.count("/32") == planner


ENGLISH = """\
ok    files of adapter/  3 tensors
ok    R orthogonal, det +1

models           mean KL      99 %       max    top-1  max |Δ|  bound
trained → wide  1.48e-02  1.75e-01  5.19e-01   96.14%   4.0666      -
wide → merged   1.21e-07  1.13e-06  4.70e-06  100.00%   0.0126  1e-04
f16 → Q4_K_M    1.48e-02  1.75e-01  5.19e-01   96.14%   4.0666      -

perplexity  trained 4.950  wide 4.910  Q4_K_M 4.975

trained → merged into         mean KL      99 %       max    top-1    ppl
original weights (this run)  1.48e-02  1.75e-01  5.19e-01   96.14%  4.910
dequantized weights          1.21e-07  1.13e-06  4.70e-06  100.00%  4.950
on kept text  base 2.310, result 2.330; KL 0.021
  at the best temperature  base 2.310 (T 1.00), result 2.320 (T 1.02); KL 0.019
  lost 0.009 nats per token, 0.004 of it by temperature alone
on other text  base 1.914, result 3.474; KL 0.31
  at the best temperature  base 1.914 (T 1.00), result 3.270 (T 1.27); KL 0.29
  lost 0.596 nats per token, 0.061 of it by temperature alone

report: artifacts/mine/verify/report.json
proven: these files come from this training: Q4_K_M
measured on 2048 tokens: Q4_K_M is 0.018 nats per token (mean KL) from the trained model; the base is 0.42
neither proven nor measured: how it answers texts other than these
the result answers as the base does, 0.021 nats per token apart on kept text, and knows your text 0.50 nats better"""

JAPANESE = """\
  型      作り方                  MB   平均 KL   top-1    ppl  プロンプト処理  生成
  F16     基準               7640.00                    4.910             120   5.2
→ Q4_K_M  plain              2390.00  1.48e-02  96.14%  4.975             212  11.3
  Q4_K_M  imatrix+head-q8_0  2490.00  1.48e-02  96.14%  4.975             212  11.3
    imatrix と同じファイル
  IQ2_M  plain  作成せず: 重要度行列が必要です
"""


def test_a_complete_screen_matches_in_each_language(monkeypatch: pytest.MonkeyPatch) -> None:
    assert every_screen()["verify"].replace("\\", "/") == ENGLISH
    monkeypatch.setenv(VARIABLE, "ja")
    assert every_screen()["quantize-study"].startswith(JAPANESE)


def test_every_name_in_a_report_has_a_translation() -> None:
    """Reports use names for programs; each has a text, and no text is unused."""
    parts = {field.name for kind in (MemoryParts, Estimate) for field in fields(kind)} | {"peak"}
    sharded = {field.name for field in fields(ShardedWeights)}
    assert words("memory", "en").keys() == parts | sharded
    assert words("need", "en").keys() == set(get_args(space_needs.NeedName))
    assert words("kind", "en").keys() == set(get_args(verify_file.Kind))
    assert words("not_built", "en").keys() == set(get_args(get_type_hints(NotBuilt)["reason"]))
    assert words("list_state", "en").keys() == set(get_args(listing.State))
    assert words("list_proof", "en").keys() == set(get_args(listing.Proof))
    assert words("finding", "en").keys() == set(get_args(finding.Name))


def test_the_screen_shows_the_rule_that_the_study_records() -> None:
    study = study_report().study
    assert study is not None
    printed = phrase("screens_study.rule", tolerance=study.tolerance, percent=100 * study.tolerance)
    assert printed == f"recommended: {study.rule}"
