"""The table of planted defects: `aegis verify` finds each, at the stage that made it.

Every manifest fits its files, so that no hash shows a defect.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis import progress
from aegis.cli import app
from aegis.config.settings import VerifyConfig
from aegis.runs.run import Run
from aegis.stages.verify import verify
from aegis.verification import quantized_rows, structure
from tests.conftest import MakeRandom
from tests.planted.finished import TOOLS, Defect, Finished
from tests.planted.keys import KEY_DEFECTS
from tests.planted.merged import MERGED_DEFECTS
from tests.planted.sidecars import SIDECAR_DEFECTS
from tests.planted.weights import WEIGHT_DEFECTS

pytestmark = pytest.mark.usefixtures("cached_tools")

DEFECTS = (*MERGED_DEFECTS, *WEIGHT_DEFECTS, *KEY_DEFECTS, *SIDECAR_DEFECTS)
FAMILIES = ("phi3", "qwen2", "llama")
CASES = [(family, defect) for defect in DEFECTS for family in defect.families]


class FinishedRuns:
    """The finished run of each family, built on first use."""

    def __init__(self, phi3: Finished, make_random: MakeRandom, tree: Path, scratch: Path) -> None:
        self._make_random, self._tree, self._scratch = make_random, tree, scratch
        self._made = {"phi3": phi3}

    def __getitem__(self, family: str) -> Finished:
        if family not in self._made:
            self._made[family] = Finished.build(family, self._base(family), self._tree, self._scratch / family)
        return self._made[family]

    def _base(self, family: str) -> Path:
        base = self._make_random(
            family, pre="qwen2" if family == "qwen2" else "llama-bpe", tie_word_embeddings=family == "llama"
        )
        if family == "qwen2":
            (base / "chat_template.jinja").write_text(TOOLS, encoding="utf-8")
        return base


@pytest.fixture(scope="session")
def finished_runs(
    quick_base: Path,
    finished_run: Run,
    cache_of_the_run: Path,
    make_random: MakeRandom,
    knowing_tree: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FinishedRuns]:
    scratch = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEGIS_CACHE_DIR", str(cache_of_the_run))
        phi3 = Finished("phi3", finished_run, quick_base, knowing_tree, scratch / "phi3")
        yield FinishedRuns(phi3, make_random, knowing_tree, scratch)


def quick(finished: Finished) -> VerifyConfig:
    return VerifyConfig(tokens=128, threads=1, device="cpu", llama_cpp_dir=finished.tree)


@pytest.mark.parametrize(("family", "defect"), CASES, ids=[f"{family}: {defect.name}" for family, defect in CASES])
def test_a_planted_defect_is_found_at_its_stage(
    finished_runs: FinishedRuns, tmp_path: Path, family: str, defect: Defect
) -> None:
    finished = finished_runs[family]
    run = finished.copy(tmp_path / "run")
    try:
        defect.plant(finished, run)
        verdict = verify(run, quick(finished))
        assert verdict.failed_stage == defect.stage, verdict.failures or "it passed"
        assert not verdict.steps, "found by bytes, before any model ran"
    finally:
        shutil.rmtree(run.root)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untouched_run_passes(finished_runs: FinishedRuns, tmp_path: Path, family: str) -> None:
    """The control of the table, through every model; and again with the quantizer asked about a sample of rows."""
    finished = finished_runs[family]
    run = finished.copy(tmp_path / "run")
    verdict = verify(run, quick(finished))
    assert verdict.failures == []
    assert verdict.steps


@pytest.mark.parametrize(
    "name",
    [
        "Q4_K_M of the plain base",
        "Q4_K_M of an earlier step",
        "one embedding row zeroed",
        "2 % of a tensor's bytes",
        "one value of the norm by one unit in Q4_K_M",
        "Q4_K_S under the name Q4_K_M",
        None,
    ],
)
def test_a_sample_of_rows_finds_what_all_of_them_find(
    finished_runs: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """As in a model too large for the quantizer to be asked about every row."""
    monkeypatch.setattr(quantized_rows, "EXACT_WEIGHTS", 0)
    finished = finished_runs["phi3"]
    run = finished.copy(tmp_path / "run")
    if name is not None:
        next(defect for defect in DEFECTS if defect.name == name).plant(finished, run)
    assert verify(run, quick(finished)).failed_stage == (None if name is None else "quantize")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("phi3", "Q4_K_M of the plain base"),
        ("qwen2", "a merge removed in f16"),
        ("llama", "one embedding by one unit"),
        ("phi3", "a stop removed from the Modelfile"),
    ],
)
def test_the_command_ends_with_5_and_names_the_stage(
    finished_runs: FinishedRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    family: str,
    name: str,
) -> None:
    finished = finished_runs[family]
    run = finished.copy(tmp_path / "run")
    defect = next(defect for defect in DEFECTS if defect.name == name)
    defect.plant(finished, run)
    monkeypatch.setenv("AEGIS_LOG_DIR", str(tmp_path / "logs"))
    arguments = ["verify", "--run", run.root, "--tokens", 64, "--device", "cpu", "--llama-cpp-dir", finished.tree]
    monkeypatch.setattr(sys, "argv", ["aegis", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    progress.install(progress.SilentReporter())
    assert ended.value.code == 5
    assert f"NOT proven: the fault is in {defect.stage}" in capsys.readouterr().out


TEXTS = {
    "one character": "a" * 600,
    "code": "def area(width, height):\n    return width * height\n\n" * 12,
    "list": "- item 1: 3 pieces\n- item 2: 5 pieces\n" * 15,
    "japanese": "りんごは赤い果物です。海には魚がいます。\n\n" * 20,
}


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TEXTS)
def test_no_text_makes_an_untouched_run_fail(
    finished_runs: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str
) -> None:
    """A sample of tools/sweep_false_alarms.py. Bytes do not depend on the text, and are compared elsewhere."""
    monkeypatch.setattr(structure.Structure, "_in_order", lambda *_: None)
    finished = finished_runs[family]
    run = finished.copy(tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[name], encoding="utf-8")
    verdict = verify(run, quick(finished).model_copy(update={"text": text, "tokens": 64}))
    assert verdict.failures == []
    assert verdict.steps


def test_the_table_has_no_fewer_kinds_than_are_promised() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 60
    assert {family for defect in DEFECTS for family in defect.families} == set(FAMILIES)
