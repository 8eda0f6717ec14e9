"""Tests of quantize-study: every combination is made by the real tools and measured, and the result can be repeated."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aegis import progress
from aegis.cli import app
from aegis.cli.screens import study as screens_study
from aegis.config.settings import ExportConfig
from aegis.config.study_settings import StudyConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import AegisError, DataError, EnvironmentFault, IntegrityError, ToolError, UsageError
from aegis.llama_cpp import GgufFile, quantize
from aegis.runs.manifest import MANIFEST, Manifest, file_sha256, read_manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from aegis.stages.export import export_gguf
from aegis.stages.quantize_study import StudyReport, quantize_study
from aegis.stages.verify_file import verify_file
from aegis.verification import divergence
from aegis.verification.study import sweep
from aegis.verification.study.result import read_study
from tests.conftest import Recorder

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="imatrix is not compiled there"),
    pytest.mark.usefixtures("shared_cache"),
]

QUICK = StudyConfig(quant=("Q4_K_M",), variants=("plain",), tokens=256, calibration_tokens=512, threads=1)
WHOLE = QUICK.model_copy(
    update={"quant": ("Q8_0", "Q2_K", "q4_k_m", "IQ2_XXS"), "variants": ("plain", "imatrix", "head-q8_0")}
)
PUBLISHED = {"calibration.txt", "imatrix.gguf", "manifest.json", "report.json", "study.png"}


@pytest.fixture(scope="module")
def finished(finished_run: Run, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run on the tiny base, exported without its f16 file and under another than the default name."""
    run = Run(tmp_path_factory.mktemp("finished") / "run")
    shutil.copytree(finished_run.root, run.root)
    export_gguf(run.merged, run.gguf, ExportConfig(name="tiny $(x) phi-3"), overwrite=True)
    return run


@pytest.fixture(scope="module")
def whole(finished: Run) -> StudyReport:
    return quantize_study(finished, WHOLE)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """Return a copy without a study."""
    shutil.copytree(finished.root, tmp_path / "run", ignore=shutil.ignore_patterns("study"))
    return Run(tmp_path / "run")


def rows(report: StudyReport) -> dict[tuple[str, str], Any]:
    assert report.study is not None
    return {(row.quant, row.variant): row for row in report.study.measured}


def test_fewer_bits_have_a_larger_divergence_from_f16(whole: StudyReport) -> None:
    """On a trained model, by factors: an order that a study on the wrong file, or on f16 itself, would not show."""
    found = {quant: row.found for (quant, variant), row in rows(whole).items() if variant == "plain"}
    assert found["Q2_K"].mean_kl > 2 * found["Q4_K_M"].mean_kl
    assert found["Q4_K_M"].mean_kl > 2 * found["Q8_0"].mean_kl > 0
    assert found["Q2_K"].top1 < found["Q8_0"].top1
    sizes = {quant: row.bytes for (quant, variant), row in rows(whole).items() if variant == "plain"}
    assert sizes["Q2_K"] < sizes["Q4_K_M"] < sizes["Q8_0"] < whole.study.reference.bytes  # type: ignore[union-attr]


def test_every_combination_has_its_own_file(whole: StudyReport) -> None:
    """The matrix changes the bytes of a K-quant; a file that it cannot change is reported as the same."""
    measured = rows(whole)
    assert len(measured) == whole.made == 10
    assert len({row.sha256 for (quant, _), row in measured.items() if quant in ("Q2_K", "Q4_K_M")}) == 6
    twins = {key: row.same_as for key, row in measured.items() if row.same_as}
    assert twins == {("Q8_0", "imatrix"): "Q8_0, plain", ("Q8_0", "head-q8_0"): "Q8_0, plain"}
    assert measured["Q8_0", "imatrix"].found == measured["Q8_0", "plain"].found


def test_types_that_cannot_be_made_without_a_matrix_are_marked(whole: StudyReport) -> None:
    assert whole.study is not None
    left = {(row.quant, row.variant): row.reason for row in whole.study.left}
    assert left == {("IQ2_XXS", variant): "needs_imatrix" for variant in ("plain", "head-q8_0")}
    assert ("IQ2_XXS", "imatrix") in rows(whole)


def test_the_study_publishes_report_picture_matrix_and_text(whole: StudyReport, finished: Run) -> None:
    """Report, picture, the matrix and its text, bound by hash to the model; no GGUF of a model, and nothing beside."""
    manifest = verify_directory(whole.out)
    assert set(manifest.files) | {MANIFEST} == PUBLISHED == {path.name for path in whole.out.iterdir()}
    assert not [path for path in finished.root.iterdir() if path.name.startswith(".")]
    report = read_study(whole.out / "report.json")
    assert report["importance"]["text_sha256"] == file_sha256(whole.out / "calibration.txt")
    assert report["importance"]["gguf_sha256"] == report["reference"]["sha256"]
    assert manifest.inputs["model"] == read_manifest(finished.gguf).inputs["model"]
    assert len(report["measured"]) == 10
    assert sum(row["front"] for row in report["measured"]) >= 2
    assert (whole.out / "study.png").stat().st_size > 10_000
    assert verify_file(whole.out).failed_stage is None


def test_the_text_of_the_measurement_is_not_that_of_the_matrix(whole: StudyReport, finished: Run) -> None:
    """The held-out rows are in no line of the calibration text, whose rows are the training's."""
    from aegis.data.packing import Windows
    from aegis.data.training_set import load_training_set
    from aegis.model.base import load_tokenizer
    from aegis.verification import token_sequences

    tokenizer = load_tokenizer(finished.merged)
    data = load_training_set(TrainConfig.model_validate(read_manifest(finished.adapter).config), tokenizer)
    calibration = (whole.out / "calibration.txt").read_text(encoding="utf-8")

    def shown(windows: Windows | None) -> list[bool]:
        assert windows is not None
        return [tokenizer.decode(piece) in calibration for piece in token_sequences.first_pieces(windows, 200)[:-1]]

    assert all(shown(data.train)[:3])
    assert not any(shown(data.heldout))


def test_the_printed_command_makes_the_recommended_file_again(whole: StudyReport, run: Run, finished: Run) -> None:
    """Byte for byte; without the matrix another file comes out."""
    assert whole.study is not None
    chosen = rows(whole)["Q4_K_M", "imatrix"]
    study = replace(whole.study, measured=(chosen,))
    printed = screens_study.command(whole, study, finished.root)
    matrix = whole.out / "imatrix.gguf"
    assert printed == (
        f"aegis export-gguf --run {finished.root} --quant Q4_K_M --imatrix {matrix} "
        "--name 'tiny $(x) phi-3' --overwrite"
    )
    config = ExportConfig(quant=("Q4_K_M",), imatrix=matrix, name="tiny $(x) phi-3")
    first = export_gguf(run.merged, run.gguf, config, overwrite=True)
    assert file_sha256(first.files[0]) == chosen.sha256
    assert read_manifest(run.gguf).inputs["imatrix"] == file_sha256(matrix)
    without = config.model_copy(update={"imatrix": None})
    # what stands is kept with its matrix, to which no type can be added without one
    assert export_gguf(run.merged, run.gguf, without, overwrite=True, reuse=True) == first
    with pytest.raises(UsageError) as caught:
        export_gguf(run.merged, run.gguf, without.model_copy(update={"quant": ("Q8_0",)}))
    assert caught.value.key == "export.imatrix_again"
    plain = export_gguf(run.merged, run.gguf, without, overwrite=True)
    assert file_sha256(plain.files[0]) == rows(whole)["Q4_K_M", "plain"].sha256 != chosen.sha256


def test_a_matrix_of_another_model_is_refused_by_export(whole: StudyReport, run: Run, tmp_path: Path) -> None:
    """By the model its manifest names, or a changed byte; without a manifest names and sizes are all there is."""
    config = ExportConfig(imatrix=tmp_path / "study" / "imatrix.gguf")

    def refused() -> str:
        with pytest.raises(AegisError) as caught:
            export_gguf(run.merged, tmp_path / "out", config)
        assert not (tmp_path / "out").exists()
        return caught.value.what

    assert "there is no importance matrix" in refused()
    (tmp_path / "study").mkdir()
    shutil.copyfile(next(run.gguf.glob("*.gguf")), config.imatrix)  # type: ignore[arg-type]
    assert "is not an importance matrix" in refused()
    shutil.rmtree(tmp_path / "study")
    shutil.copytree(whole.out, tmp_path / "study")
    manifest = json.loads((tmp_path / "study" / MANIFEST).read_text(encoding="utf-8"))
    other = {**manifest, "inputs": {**manifest["inputs"], "model": "0" * 64}}
    (tmp_path / "study" / MANIFEST).write_text(json.dumps(other), encoding="utf-8")
    assert "of another model" in refused()
    (tmp_path / "study" / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    data = bytearray(config.imatrix.read_bytes())  # type: ignore[union-attr]
    data[-8] ^= 1
    config.imatrix.write_bytes(data)  # type: ignore[union-attr]
    assert "not what its manifest says" in refused()


def test_a_matrix_without_a_manifest_is_accepted_with_a_warning(
    whole: StudyReport, run: Run, tmp_path: Path, reporter: Recorder
) -> None:
    shutil.copyfile(whole.out / "imatrix.gguf", tmp_path / "stray.gguf")
    report = export_gguf(
        run.merged, tmp_path / "out", ExportConfig(quant=("IQ2_XXS",), imatrix=tmp_path / "stray.gguf")
    )
    assert any("only names and sizes" in line for line in reporter.warned)
    assert report.files[0].name.endswith("-IQ2_XXS.gguf")
    with pytest.raises(UsageError, match="IQ2_XXS needs an importance matrix"):
        export_gguf(run.merged, tmp_path / "other", ExportConfig(quant=("IQ2_XXS",)))


def test_only_the_head_is_kept_at_8_bits_and_files_stay_on_request(run: Run) -> None:
    variants = ("plain", "imatrix", "head-q8_0", "imatrix+head-q8_0")
    report = quantize_study(run, QUICK.model_copy(update={"variants": variants, "keep": True}))
    heads, embeddings = {}, set()
    for variant in variants:
        with GgufFile(report.out / f"Q4_K_M-{variant}.gguf") as file:
            heads[variant] = file.tensors["output.weight"].type
            embeddings.add(file.tensors["token_embd.weight"].type)
    assert heads == {"plain": "Q6_K", "imatrix": "Q6_K", "head-q8_0": "Q8_0", "imatrix+head-q8_0": "Q8_0"}
    assert embeddings == {"Q4_K"}
    found = {key: row.sha256 for key, row in rows(report).items()}
    assert len(set(found.values())) == 4
    for (quant, variant), sha256 in found.items():
        assert file_sha256(report.out / f"{quant}-{variant}.gguf") == sha256


@pytest.mark.parametrize("keep", [False, True])
def test_the_announced_disk_space_is_enough_and_close(
    keep: bool, run: Run, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    """At the fullest moments: after each quantization, and when its logits are there."""
    before, stood = _standing(run), [0]

    def watched(*arguments: Any, **named: Any) -> Any:
        result = quantize(*arguments, **named)
        stood.append(_standing(run) - before)
        return result

    def compared(*arguments: Any) -> Any:
        stood.append(_standing(run) - before)
        return real(*arguments)

    real = divergence.compare
    monkeypatch.setattr(sweep, "quantize", watched)
    monkeypatch.setattr(divergence, "compare", compared)
    config = QUICK.model_copy(update={"quant": ("Q8_0", "Q4_K_M"), "variants": ("plain", "imatrix"), "keep": keep})
    report = quantize_study(run, config)
    assert max(stood) <= report.disk_bytes < 2 * max(stood) + (8 << 20)
    assert any(line.startswith("4 files, one after the other: at most") for line in reporter.messages)


def _standing(run: Run) -> int:
    return sum(path.stat().st_size for path in run.root.rglob("*") if path.is_file())


def test_a_dry_run_writes_no_file_and_reports_too_little_disk_space(
    run: Run, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, cache = _standing(run), tmp_path / "cache"
    shutil.copytree(shared_cache, cache, ignore=shutil.ignore_patterns("data"))
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(cache))
    report = quantize_study(run, WHOLE, dry_run=True)
    assert not (cache / "data").exists()
    assert (report.study, report.made) == (None, 10)
    assert "measurements of 10 files" in screens_study.planned(report)
    usage = shutil.disk_usage(run.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=report.disk_bytes - 1))
    with pytest.raises(EnvironmentFault, match="not enough disk space for the study"):
        quantize_study(run, WHOLE)
    assert _standing(run) == before


@pytest.mark.parametrize(
    ("settings", "error", "printed"),
    [
        ({"quant": ("Q4_K_N",)}, UsageError, "Q4_K_N"),
        ({"quant": ("Q4_K_M", "f16")}, UsageError, "F16 is not a quantization"),
        ({"quant": ("IQ1_S",)}, UsageError, "IQ1_S needs an importance matrix"),
        ({"text": Path("absent.txt")}, UsageError, "no text at"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    settings: dict[str, Any], error: type[AegisError], printed: str, run: Run
) -> None:
    before = _standing(run)
    with pytest.raises(error, match=printed):
        quantize_study(run, QUICK.model_copy(update=settings))
    assert _standing(run) == before


def test_a_run_that_is_not_sound_is_refused(run: Run) -> None:
    """The control is every other test here."""
    with next(run.merged.glob("*.safetensors")).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(IntegrityError, match="not what its manifests say"):
        quantize_study(run, QUICK)
    shutil.rmtree(run.gguf)
    with pytest.raises(IntegrityError, match="there is no gguf/"):
        quantize_study(run, QUICK)


def test_a_missing_compiler_is_an_error_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a dry run; without the matrix none is needed."""
    config = QUICK.model_copy(update={"variants": ("plain", "imatrix")})
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    before = _standing(run)
    for dry_run in (True, False):
        with pytest.raises(EnvironmentFault, match="no C\\+\\+ compiler"):
            quantize_study(run, config, dry_run=dry_run)
    assert _standing(run) == before
    assert quantize_study(run, QUICK, dry_run=True).made == 1


def test_the_users_own_text_can_be_measured_on(run: Run, tmp_path: Path) -> None:
    """Every fourth paragraph is measured on; a text in one piece, or a short one, is refused with the reason."""
    from aegis.demo.corpus import documents

    paragraphs = documents(7, 40, "train")
    path = tmp_path / "mine.txt"
    config = QUICK.model_copy(update={"text": path, "variants": ("plain", "imatrix")})
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    report = quantize_study(run, config)
    calibration = (report.out / "calibration.txt").read_text(encoding="utf-8")
    shown = [paragraph[:12] in calibration for paragraph in paragraphs[:8]]
    assert shown == [place % 4 != 3 for place in range(8)]
    path.write_text("".join(paragraphs).replace("\n", ""), encoding="utf-8")
    with pytest.raises(DataError, match="in one piece"):
        quantize_study(run, config, overwrite=True)
    for short in ("短い。\n\n" * 5, "\n\n".join([*["一つ。"] * 3, "とても長い文です。" * 80])):
        path.write_text(short, encoding="utf-8")
        with pytest.raises(DataError, match="too short"):
            quantize_study(run, config, overwrite=True)
    verify_directory(report.out)


def test_an_earlier_study_is_kept_until_the_new_one_is_complete(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with publishing(run.study, Manifest("quantize-study", {}, {}, {})) as staging:
        (staging.path / "old").touch()
    with pytest.raises(UsageError, match="exists"):
        quantize_study(run, QUICK)
    worker = tmp_path / "worker.py"
    worker.write_text("import sys\nprint('cannot')\nsys.exit(3)\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["aegis.llama_cpp.quantize"], "_WORKER", worker)
        with pytest.raises(ToolError, match="cannot"):
            quantize_study(run, QUICK, overwrite=True)
    assert {path.name for path in run.study.iterdir()} == {"manifest.json", "old"}
    quantize_study(run, QUICK, overwrite=True)
    assert {path.name for path in run.study.iterdir()} == {"manifest.json", "report.json", "study.png"}
    assert not [path for path in run.root.iterdir() if path.name.startswith(".")]


def test_the_command_prints_a_table_or_json(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Lists with commas, a setting from the environment, the next command; with --json the report for programs."""

    def aegis(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["aegis", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        progress.install(progress.SilentReporter())
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return str(printed.out)

    monkeypatch.setenv("AEGIS_STUDY_TOKENS", "64")
    monkeypatch.setenv("AEGIS_LOG_DIR", str(run.root.parent / "logs"))
    asked = ("quantize-study", "--run", run.root, "--quant", "q8_0,q4_0", "--variants", "plain", "--threads", 1)
    assert "measurements of 2 files" in aegis(*asked, "--dry-run")
    assert "next: aegis export-gguf --run" in aegis(*asked)
    rows = [json.loads(line) for line in aegis("--json", *asked, "--overwrite").splitlines()]
    (report,) = [row["report"] for row in rows if row["event"] == "result"]
    assert [row["quant"] for row in report["measured"]] == ["Q8_0", "Q4_0"]
    assert (report["tokens"], report["rule"][:8]) == (64, "the smal")


def test_the_table_shows_every_row(whole: StudyReport, finished: Run) -> None:
    assert whole.study is not None
    lines = screens_study.studied(whole, whole.study, finished.root).splitlines()
    for quant, variant in rows(whole):
        assert any(line[2:].split()[:2] == [quant, variant] for line in lines), (quant, variant)
    assert sum(line.startswith("→ ") for line in lines) == 2  # the row and the rule
    assert sum("not made: needs an importance matrix" in line for line in lines) == 2
    assert lines[-1].startswith("next: aegis export-gguf")
