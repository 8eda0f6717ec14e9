"""Tests of a run's report: complete after a complete run, and with a note for everything that is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegis.chat import ask, load
from aegis.chat.ask import Limits
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.errors import EnvironmentFault, UsageError
from aegis.report.answers import Answer
from aegis.run_all import run_all
from aegis.runs.manifest import read_manifest, verify_directory
from aegis.runs.run import Run
from aegis.stages.report import report
from tests.planted.finished import reseal
from tests.screen_texts import english_in
from tests.trained import QUESTIONS, small_training, write_chats

SHORT = Limits(count=2, max_tokens=8)


@pytest.fixture(scope="module")
def finished(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a complete run, of which tests take copies."""
    folder = tmp_path_factory.mktemp("finished")
    config = small_training(quick_base, write_chats(folder / "data.jsonl")).model_copy(update={"max_steps": 4})
    run = Run(folder / "run")
    run_all(config, MergeConfig(), ExportConfig(), VerifyConfig(tokens=128, threads=1, device="cpu"), run)
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("AEGIS_LANG", "en")
    return Run(shutil.copytree(finished.root, tmp_path / "run"))


def words(page: Path) -> str:
    return re.sub(r"data:image/png;base64,\S+", "", page.read_text(encoding="utf-8"))


def test_the_page_of_a_complete_run_has_every_section(run: Run, finished: Run) -> None:
    """Everything is on the page: five pictures, both tables, three models' answers to held-out questions, hashes."""
    page = report(run, SHORT)
    text = words(page)
    verify_directory(run.report)
    assert page.read_text(encoding="utf-8").count("data:image/png;base64,") == 5
    assert "proven: what was trained is what runs" in text
    assert text.count('<div class="sample">') == 2
    assert sum(question in text for question in QUESTIONS) == 2
    for voice in ("<dt>base</dt>", "<dt>trained</dt>", "<dt>GGUF Q4_K_M</dt>"):
        assert text.count(voice) == 2
    assert "not asked" not in text
    for directory in (run.adapter, run.merged, run.gguf, run.verify):
        for name, record in read_manifest(directory).files.items():
            assert f"{directory.name}/{name}" in text
            assert record.sha256 in text
    assert "ollama create" in text
    assert "wide → merged" in text
    # where on a disk it was made is nobody's business
    assert str(run.root.parent) not in text
    assert str(finished.root.parent) not in text


def test_an_unchanged_report_is_kept_and_a_changed_one_is_written_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `reuse`, models answer once per run; a changed part, or another question, asks them again."""
    asked: list[list[str]] = []
    monkeypatch.setattr(ask, "ask", lambda _run, questions, _limits: asked.append(list(questions)) or [])
    first = report(run, SHORT, reuse=True).read_bytes()
    assert report(run, SHORT, reuse=True).read_bytes() == first
    assert len(asked) == 1
    report(run, SHORT, ["別の質問?"], reuse=True)
    assert asked[1] == ["別の質問?"]
    (run.gguf / "Modelfile").write_text("FROM another", encoding="utf-8")
    reseal(run.gguf)
    report(run, SHORT, ["別の質問?"], reuse=True)
    assert len(asked) == 3
    shutil.rmtree(run.verify)
    report(run, SHORT, ["別の質問?"], reuse=True)
    assert len(asked) == 4
    monkeypatch.setenv("AEGIS_LANG", "ja")
    assert "動かし方" in words(report(run, SHORT, ["別の質問?"], reuse=True))


def test_the_page_of_a_run_that_is_only_trained_says_what_is_missing(run: Run) -> None:
    """No merged model, no GGUF, no verdict, no pictures, no metrics: each is named as missing."""
    for directory in (run.merged, run.gguf, run.verify, run.pictures):
        shutil.rmtree(directory)
    run.metrics.unlink()
    text = words(report(run, Limits(count=1, max_tokens=4)))
    assert "not verified: it has not been run" in text
    for folder in ("merged/", "gguf/", "verify/"):
        assert f"Not available: {folder}" in text
    assert "<img" not in text
    assert text.count("<dt>trained</dt>") == 1
    assert "gguf has no manifest.json" in text
    shutil.rmtree(run.adapter)
    with pytest.raises(UsageError, match="no finished training"):
        report(run, SHORT)


@pytest.mark.parametrize("changes", [{"planned_steps": 5000}, {"step": 2}])
def test_the_rows_of_another_training_are_left_out(run: Run, changes: dict[str, int]) -> None:
    """A killed `train --overwrite` leaves its own beside the adapter of before; the control is the adapter's own."""
    *before, last = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
    last |= {"task_loss": 11.9, "tokens_per_second": 1234567.0}

    def shown(row: dict[str, object]) -> list[bool]:
        run.metrics.write_text("".join(json.dumps(each) + "\n" for each in (*before[:1], row)), encoding="utf-8")
        text = words(report(run, Limits(count=0, max_tokens=4)))
        return [number in text for number in ("11.9000", "steps</dt><dd>4<")]

    assert (shown(last), shown(last | changes)) == ([True, True], [False, True])


@pytest.mark.parametrize("part", ["merged", "gguf", "verify"])
@pytest.mark.parametrize("damage", ["", "{", '{"format": "aegis-manifest", "version": 1}', "[]"])
def test_the_page_names_a_damaged_part(run: Run, part: str, damage: str) -> None:
    (run.root / part / "manifest.json").write_text(damage, encoding="utf-8")
    text = words(report(run, Limits(count=0)))
    assert "Not available: " in text
    assert "proven: what" not in text


def test_invalid_values_in_a_manifest_do_not_break_the_page(run: Run) -> None:
    """The manifests can be parsed, and have values of wrong types."""
    for part in ("merged", "gguf", "adapter"):
        path = run.root / part / "manifest.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["facts"] = {name: ["<b>"] for name in document["facts"]}
        document["config"] = {name: {"x": "<b>"} for name in document["config"]}
        path.write_text(json.dumps(document), encoding="utf-8")
    text = words(report(run, Limits(count=0)))
    assert "not verified" in text
    assert "<b>" not in text


def test_missing_or_changed_data_is_reported_on_the_page(run: Run, finished: Run) -> None:
    """Held-out questions are then unknown, which the page says; given ones are still asked."""
    data = finished.root.parent / "data.jsonl"
    kept = data.read_bytes()
    try:
        data.write_bytes(kept + kept.splitlines(keepends=True)[0])
        assert "the data has changed since the training" in words(report(run, SHORT))
        data.unlink()
        assert "data.jsonl" in words(report(run, SHORT))
        given = words(report(run, SHORT, ["<i>質問</i>"]))
        assert "&lt;i&gt;質問&lt;/i&gt;" in given
        assert "chats that were not trained on" not in given
    finally:
        data.write_bytes(kept)


class Slow:
    """A GGUF that takes a second per token, on a clock that tests set."""

    path = Path("tiny-Q4_K_M.gguf")

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock

    def chat_all(
        self, chats: list[object], max_tokens: int, *, expired: Callable[[], bool], **_: object
    ) -> list[tuple[str, bool]]:
        for tokens in range(max_tokens):
            if expired():
                return [("あ" * tokens, True) for _ in chats]
            self._clock[0] += 1
        return [("あ" * max_tokens, False) for _ in chats]


def test_slow_and_failing_models_do_not_stop_the_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of a model that is too slow are cut; one that cannot be loaded says why; the others are asked."""
    clock = [0.0]
    monkeypatch.setattr(ask.time, "monotonic", lambda: clock[0])

    @contextmanager
    def speaking(_run: Run, _threads: int | None = None) -> Iterator[Slow]:
        yield Slow(clock)

    class Loaded:
        def answers(self, chats: list[object], _max_tokens: int, **_: object) -> list[Answer]:
            return [Answer("はい") for _ in chats]

    def loading(_run: Run, wanted: list[str]) -> Iterator[tuple[str, Loaded]]:
        yield wanted[0], Loaded()
        raise EnvironmentFault("disk.no_cache", directory="x", error="no memory for it")

    monkeypatch.setattr(load, "load_for_answers", loading)
    monkeypatch.setattr(load, "load_gguf_for_answers", speaking)
    questions = ["一", "二", "三"]
    for on_gpu in (False, True):  # there, llama.cpp answers beside the others
        monkeypatch.setattr(ask, "is_on_gpu", lambda on_gpu=on_gpu: on_gpu)
        clock[0] = 0.0
        base, trained, gguf = ask.ask(run, questions, Limits(max_tokens=9, seconds=5.5))
        assert [answer.text for answer in base.answers] == ["はい"] * 3
        assert (trained.who, trained.answers, trained.missing) == ("trained", (), "x cannot be used as the cache")
        assert gguf.name == "Q4_K_M"
        assert [(answer.text, answer.cut) for answer in gguf.answers] == [("あ" * 6, True)] * 3
        *_, gguf = ask.ask(run, questions, Limits(max_tokens=4, seconds=5.5))
        assert [(answer.text, answer.cut) for answer in gguf.answers] == [("あ" * 4, False)] * 3


def test_a_japanese_page_is_japanese(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that was verified in English: the names of checks, what they found, and what failed."""
    recorded = json.loads((run.verify / "report.json").read_text(encoding="utf-8"))
    names = [check["name"]["english"] for check in recorded["checks"]]
    assert len(names) > 10
    english = html.unescape(words(report(run, Limits(count=0))))
    assert all(name in english for name in names)
    monkeypatch.setenv("AEGIS_LANG", "ja")
    text = words(report(run, Limits(count=0)))
    section = text.partition('<section id="verify">')[2].partition("</section>")[0]
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>([^<]*)</td>", section)]
    assert set(cells) & set(names) == set()
    assert [cell for cell in cells if english_in(cell)] == []
    assert "トークン/秒" in text
