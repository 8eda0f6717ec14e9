"""Tests of the command line: every setting is a flag, and every error has an exit code and a message."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aegis import progress
from aegis.cli import app
from aegis.cli.checked_settings import all_settings
from aegis.config.presets import PRESETS
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.stage_config import StageConfig
from aegis.config.train_settings import TrainConfig
from aegis.doctor import Finding, installation
from aegis.errors import UsageError
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run
from aegis.stages import train as train_stage

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Aegis = Callable[..., Ended]


@pytest.fixture
def aegis(
    tmp_path: Path,
    cache_of_the_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Aegis]:
    """Run `aegis …` in this process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(cache_of_the_run))
    monkeypatch.setenv("AEGIS_LOG_DIR", str(tmp_path_factory.getbasetemp() / "logs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["aegis", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, printed.out, printed.err)

    yield run
    progress.install(progress.SilentReporter())


@pytest.fixture
def spawn(
    tmp_path: Path, cache_of_the_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `python -m aegis …` in a separate process."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AEGIS_"))}
        return subprocess.run(
            [sys.executable, "-m", "aegis", *map(str, arguments)],
            cwd=tmp_path,
            env=inherited
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)]),
                "AEGIS_CACHE_DIR": str(cache_of_the_run),
                "AEGIS_LOG_DIR": str(tmp_path_factory.getbasetemp() / "logs"),
                "AEGIS_LANG": "en",
                "HF_HUB_OFFLINE": "1",
                **environment,
            },
            capture_output=True,
            timeout=240,
        )

    return run


DEMO = ("train", "--preset", "demo")
SMALL = (
    *("--device", "cpu", "--max-length", 32, "--lora-r", 2, "--heldout-rows", 0, "--max-steps", 2, "--save-steps", 2),
    *("--keep-windows", 8),
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    row = {"messages": [{"role": "user", "content": "春の花は?"}, {"role": "assistant", "content": "桜でござる。"}]}
    path.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 40, encoding="utf-8")
    return path


COMMANDS = (
    *("doctor", "init", "plan", "train", "merge", "import-soul", "export-gguf", "verify", "run", "quantize-study"),
    *("report", "card", "push", "chat", "serve", "ollama"),
)


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_loads_no_torch(command: list[str]) -> None:
    """It comes at once: torch, transformers and llama.cpp stay where they are."""
    code = (
        "import sys; sys.argv = ['aegis', *{command}, '--help']\n"
        "from aegis.cli import app\n"
        "try: app.main()\n"
        "except SystemExit as ended: code = ended.code\n"
        "heavy = {{'torch', 'transformers', 'peft', 'bitsandbytes', 'llama_cpp', 'gguf', 'numpy', *{more}}}\n"
        "print('HEAVY', code, sorted(heavy & set(sys.modules)))"
    )
    # the list of commands needs their names alone; the settings of one are pydantic's
    more = [] if command else ["pydantic"]
    done = subprocess.run(
        [sys.executable, "-c", code.format(command=command, more=more)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY 0 []", done.stderr
    assert "--help" in done.stdout


@pytest.mark.parametrize(
    ("command", "models"),
    [
        ("train", [TrainConfig]),
        ("merge", [MergeConfig]),
        ("export-gguf", [ExportConfig]),
        ("verify", [VerifyConfig]),
        ("run", [TrainConfig, MergeConfig, ExportConfig, VerifyConfig]),
        ("plan", [TrainConfig, MergeConfig, ExportConfig, VerifyConfig]),
    ],
)
def test_every_setting_has_a_flag(aegis: Aegis, command: str, models: list[type[StageConfig]]) -> None:
    """Each field of the stage's config, with its description, in the command's help."""
    ended = aegis(command, "--help")
    words = "".join(ended.out.split())
    assert ended.code == 0
    for model in models:
        for name, field in model.model_fields.items():
            assert f"--{name.replace('_', '-')}" in ended.out, name
            if len(models) == 1:  # one flag may serve two stages, and has one text
                assert "".join(str(field.description).split()) in words, name


def test_version_prints_the_version(aegis: Aegis) -> None:
    from aegis import __version__

    assert aegis("--version") == Ended(0, f"{__version__}\n", "")


def test_a_call_without_arguments_prints_help(aegis: Aegis) -> None:
    ended = aegis()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: aegis [OPTIONS] COMMAND")
    assert all(command in ended.out for command in COMMANDS)


def test_the_originals_dry_run_works(
    aegis: Aegis, quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line of the original's README, except for the base, takes steps and prints the next command."""
    monkeypatch.setenv("AEGIS_TRAIN_KEEP_WINDOWS", "8")
    ended = aegis(
        "train", "--base-model", quick_base, "--max-steps", 10, "--batch-size", 1, "--max-length", 256, "--dry-run"
    )
    assert (ended.code, "10 of 10 steps run" in ended.out) == (0, True), ended.err
    assert list(tmp_path.iterdir()) == []


def test_the_originals_training_works(
    aegis: Aegis, quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All eight of the original's options, no dataset and no run: the embedded data, artifacts/<name of the base>."""
    base = tmp_path / "Borea Phi"
    shutil.copytree(quick_base, base)
    monkeypatch.setenv("AEGIS_TRAIN_KEEP_WINDOWS", "8")
    ended = aegis(
        *("train", "--base-model", base, "--max-steps", 2, "--warmup-steps", 1, "--annealing-steps", 1),
        *("--batch-size", 1, "--max-length", 64, "--learning-rate", "2e-4", "--save-steps", 1),
    )
    assert ended.code == 0, ended.err
    run = Run(tmp_path / "artifacts" / "Borea-Phi")
    config = read_manifest(run.adapter).config
    assert config["learning_rate"] == 2e-4
    assert (config["max_steps"], config["max_length"], config["dataset"]) == (2, 64, "demo")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_000001", "step_000002"]
    assert "next: aegis merge --run artifacts/Borea-Phi" in ended.out.replace("\\", "/")
    assert ESCAPE not in ended.out + ended.err
    again = aegis("train", "--base-model", base, "--max-steps", 2)
    assert (again.code, "is finished (2 steps)" in again.err) == (2, True)
    assert "do: aegis merge --run artifacts/Borea-Phi" in again.err.replace("\\", "/")
    assert "deletes checkpoints, metrics.jsonl, kept, pictures, adapter" in again.err


def test_only_json_is_on_stdout(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    """Through train and merge: every line of stdout parses, metrics are among them, and the result is the last."""
    ended = aegis("--json", "train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert {"begin", "end", "message", "metrics", "result"} <= {row["event"] for row in rows}
    assert rows[-1]["event"] == "result"
    assert rows[-1]["report"]["steps"] == 2
    assert Path(rows[-1]["report"]["adapter"]) == Path("r") / "adapter"
    ended = aegis("--json", "merge", "--run", "r")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out.splitlines()[-1])["report"]["untied"] is False
    ended = aegis("--json", "merge", "--run", "r")
    assert (ended.code, ended.out) == (2, "")

    # the same run, once more: a base with other weights is not the one it was trained on
    other = tmp_path / "other"
    shutil.copytree(quick_base, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-2] ^= 1
    (other / "model.safetensors").write_bytes(data)
    ended = aegis("merge", "--base-model", other, "--adapter", "r/adapter", "--out", "merged")
    assert (ended.code, "was not trained on" in ended.err) == (5, True)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["train", "--base-model", "./nowhere"], 2, "no base model at './nowhere'"),
        (["train", "--base-model", "owner/name"], 3, "not in the local cache"),
        (["train", "--base-model", "{base}", "--dataset", "absent.jsonl"], 2, "absent.jsonl"),
        (["train", "--base-model", "{base}", "--dataset", "{base}"], 4, "can be used"),
        (["train", "--base-model", "{base}", "--config", "absent.toml"], 2, "no config file"),
        (["train", "--base-model", "{base}", "--run", "{base}/config.json"], 2, "cannot be used as a run directory"),
        (["train", "--base-model", "{base}", "--run", "n" * 300], 2, ""),
        (["train", "--base-model", "{base}", "--resume", "--run", "r"], 2, "no checkpoint to resume"),
        (["train", "--base-model", "{base}", "--lora-targets", "q_proj,k_proj,o_proj"], 2, "q_proj, k_proj"),
        (["train", "--max-steps", "many"], 2, "--max-steps"),
        (["train", "--max-steps", "0"], 2, "max_steps = 0"),
        (["train", "--load-in", "8bit"], 2, "--load-in"),
        (["train", "--preset", "borea"], 2, "did you mean 'borea-12gb'?"),
        (["train", "--max-step", "3"], 2, "--max-step"),
        (["trian"], 2, "trian"),
        (["merge", "--run", "nowhere"], 2, "there is no run at nowhere"),
        (["merge", "--run", "n" * 300], 2, ""),
        (["merge"], 2, "there is no run in artifacts"),
        (["merge", "--base-model", "x"], 2, "no model to merge given"),
        (["merge", "--run", ".", "--soul", "x"], 2, "--soul"),
        (["merge", "--base-model", "{base}", "--adapter", ".", "--out", "o"], 2, "not an adapter folder"),
        (["export-gguf", "--model", "{base}"], 2, "no model to export given"),
        (["train"], 2, "no base model given"),
        (["run", "--dataset", "mine.jsonl", "--dry-run"], 2, "no base model given"),
        (["plan", "--dataset", "mine.jsonl"], 2, "--preset demo"),
        (["export-gguf", "--model", "{base}", "--out", "o", "--quant", "Q4_K_X"], 2, "did you mean Q4_K_"),
        (["export-gguf", "--model", "{base}", "--out", "{base}"], 2, "exists"),
        (["export-gguf", "--model", ".", "--out", "o"], 2, "no config.json"),
        (["chat", "--gguf", "absent.gguf", "-p", "x"], 2, "absent.gguf"),
        (["chat", "--run", "."], 5, "is not finished"),
        (["chat", "--live", "--run", "."], 5, "is not finished"),
        (["serve", "--gguf", "absent.gguf"], 2, "absent.gguf"),
        (["serve", "--gguf", "absent.gguf", "--host", "0.0.0.0"], 2, "--host"),
        (["serve", "--run", "nowhere"], 2, "there is no run at nowhere"),
        (["report", "--run", "."], 2, "holds no finished training"),
        (["report", "--run", "nowhere"], 2, "there is no run at nowhere"),
        (["card", "--run", "."], 2, "has no gguf/"),
        (["push", "owner/name", "--run", ".", "--part", "weights"], 2, "--part"),
        (["push", "--run", "."], 2, "OWNER/NAME"),
    ],
)
def test_failures_have_an_exit_code_and_a_message(
    aegis: Aegis, quick_base: Path, tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    """The exit code of the class, the message on stderr, nothing on stdout, no file and no traceback."""
    ended = aegis(*(argument.replace("{base}", str(quick_base)) for argument in arguments))
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert ended.err.startswith("aegis: ") or "warning" in ended.err or "\naegis: " in ended.err
    assert expected in ended.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--preset", "demo", "--dataset", "absent.jsonl"],
        ["run", "--preset", "borea-12gb", "--dataset", "absent.jsonl", "--dry-run"],
        ["run", "--base-model", "./nowhere", "--dataset", "demo"],
        ["plan", "--preset", "demo", "--quant", "Q4KM"],
        ["run", "--preset", "demo", "--text", "absent.txt"],
        ["export-gguf", "--quant", "Q4KM"],
        ["verify", "--text", "absent.txt"],
        ["merge"],
        ["report", "--run", "nowhere"],
    ],
)
def test_cheap_mistakes_are_reported_before_torch_is_loaded(
    spawn: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path, arguments: list[str]
) -> None:
    """Importing torch would end the process before the message; the control does import it, and ends there."""
    (tmp_path / "guard" / "torch").mkdir(parents=True)
    (tmp_path / "guard" / "torch" / "__init__.py").write_text("raise SystemExit(77)")
    paths = os.pathsep.join([str(tmp_path / "guard"), str(ROOT / "pipeline"), str(ROOT)])
    ended = spawn(*arguments, PYTHONPATH=paths)
    assert (ended.returncode, ended.stdout) == (2, b""), ended.stderr
    assert ended.stderr.startswith(b"aegis: ")
    assert len(ended.stderr.decode().splitlines()) <= 3
    if arguments == ["merge"]:
        assert spawn("plan", "--preset", "demo", PYTHONPATH=paths).returncode == 77


def test_common_options_are_accepted_before_and_after_the_command(aegis: Aegis) -> None:
    for arguments in (("--json", "version"), ("version", "--json")):
        ended = aegis(*arguments)
        assert json.loads(ended.out) == {"event": "result", "report": {"version": "0.1.0"}}
    assert aegis("version").out == "0.1.0\n"
    assert aegis("version", "--no-such-option").code == 2
    assert "show the traceback" in aegis("merge", "-h").out


def test_help_can_be_requested_in_three_ways(aegis: Aegis) -> None:
    """And an error in a command's options names that command's own help."""
    assert aegis("help", "merge").out == aegis("merge", "-h").out == aegis("merge", "--help").out
    assert aegis("help").out == aegis("-h").out == aegis().out
    assert "did you mean" in aegis("help", "mrege").err.lower()
    assert "do: aegis merge --help" in aegis("merge", "--nope").err


def test_a_run_need_not_be_named(aegis: Aegis, tmp_path: Path) -> None:
    """The only run or the last used one is taken and named; a name in artifacts/ is enough."""
    assert (aegis("list").code, aegis("card").code) == (2, 2)
    for number, name in enumerate(("older", "newer")):
        root = tmp_path / "artifacts" / name
        (root / "checkpoints").mkdir(parents=True)
        os.utime(root, (number, number))
    ended = aegis("card")
    assert (ended.code, f"run: {Path('artifacts') / 'newer'} (used last, of 2" in ended.err) == (2, True), ended
    assert str(Path("artifacts") / "older") in aegis("card", "--run", "older").err
    assert "there are: " in aegis("card", "--run", "oldest").err
    rows = json.loads(aegis("list", "--json").out)["report"]["runs"]
    assert [row["state"] for row in rows] == ["started", "started"]
    assert "older" in aegis("list").out


def test_bad_data_names_the_line(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    lines = dataset.read_text(encoding="utf-8").splitlines()
    lines[36] = '{"messages": ['
    dataset.write_text("\n".join(lines), encoding="utf-8")
    ended = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert ended.code == 4
    assert "37" in ended.err
    dataset.write_text("")
    ended = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert ended.code == 4
    assert not (tmp_path / "r").exists()


def test_a_full_disk_has_the_exit_code_of_the_environment(
    aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    ended = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert (ended.code, "not enough disk space for the checkpoints" in ended.err) == (3, True)
    assert not (tmp_path / "r").exists()


def test_a_held_run_is_exit_8(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with Run(tmp_path / "r").lock():
            is_held.set()
            is_over.wait(100)

    with ThreadPoolExecutor(1) as other, ExitStack() as at_the_end:
        other.submit(hold)
        at_the_end.callback(is_over.set)
        assert is_held.wait(20)
        ended = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
        assert (ended.code, f"process {os.getpid()}" in ended.err) == (8, True)
        assert aegis("merge", "--run", "r").code == 8
        assert aegis("export-gguf", "--run", "r").code == 8


def raising(error: BaseException) -> Callable[..., object]:
    def stage(*_: object, **__: object) -> object:
        raise error

    return stage


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "/x/y cannot be used"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 2, "Read-only file system"),
    ],
)
def test_signals_and_errors_of_the_operating_system_have_exit_codes(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, expected: str
) -> None:
    """Ctrl-C, a full disk anywhere, a path that may not be written: no traceback."""
    monkeypatch.setattr(train_stage, "train", raising(error))
    ended = aegis(*DEMO)
    assert (ended.code, expected in ended.err) == (code, True), ended.err


def test_an_unexpected_exception_is_reported_as_a_bug(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exit 1, one line, and where the traceback is; no traceback on the screen unless it is asked for."""
    log = tmp_path_factory.getbasetemp() / "logs" / "aegis.log"
    monkeypatch.setattr(train_stage, "train", raising(ZeroDivisionError("ours")))
    ended = aegis(*DEMO)
    assert (ended.code, ended.out) == (1, "")
    assert "\naegis: this is a bug: ZeroDivisionError: ours\n" in ended.err
    assert str(log) in ended.err
    assert log.read_text(encoding="utf-8").rstrip().endswith("ZeroDivisionError: ours")
    assert "Traceback" in log.read_text(encoding="utf-8").rpartition("ended by")[2]


def test_a_missing_package_is_reported_as_a_fault_of_the_installation(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3 with the command that installs it, wherever the import is."""
    lacking = Finding("packages", "fail", "missing: peft", "mend it so")
    monkeypatch.setattr(installation, "packages", lambda: [lacking])
    monkeypatch.setattr(train_stage, "train", raising(ModuleNotFoundError("No module named 'peft'", name="peft")))
    ended = aegis(*DEMO)
    assert ended.code == 3
    assert "not completely installed: No module named 'peft'" in ended.err
    assert "missing: peft" in ended.err
    assert "mend it so" in ended.err
    assert "bug" not in ended.err


def test_an_import_error_in_a_complete_installation_is_reported_as_a_bug(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "packages", lambda: [Finding("packages", "ok", "all there")])
    monkeypatch.setattr(train_stage, "train", raising(ImportError("cannot import name 'x'", name="aegis.hub")))
    assert aegis(*DEMO).code == 1


def test_debug_shows_the_traceback(aegis: Aegis, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for error, code in ((ZeroDivisionError("ours"), 1), (UsageError("cli.no_run", path="theirs", hint=""), 2)):
        monkeypatch.setattr(train_stage, "train", raising(error))
        monkeypatch.setattr(sys, "argv", ["aegis", "--debug", *DEMO])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr().err
        assert ended.value.code == code
        assert "Traceback" in printed
        assert getattr(error, "what", str(error)) in printed.rpartition("\naegis: ")[2]
    assert "Traceback" not in aegis("train", "--max-steps", 0).err


def test_dry_runs_write_nothing(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    """On every stage: what it would make and take, on stdout, and not a byte on the disk."""
    assert aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL).code == 0

    def there() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    before = there()
    for command, expected in (
        (("merge", "--run", "r"), "would hold"),
        (("run", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL), "peak"),
        (("plan", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL), "peak"),
        (("export-gguf", "--model", quick_base, "--out", "o"), "Q4_K_M.gguf"),
    ):
        ended = aegis(*command, *(() if command[0] == "plan" else ("--dry-run",)))
        assert (ended.code, expected in ended.out, "nothing was written" in ended.out) == (0, True, True), ended
        assert there() == before, command
    assert aegis("verify", "--run", "r", "--dry-run").code == 5  # it is not finished, and the error names that
    assert there() == before


def test_dry_runs_refuse_what_the_stage_refuses(aegis: Aegis, quick_base: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    assert aegis("export-gguf", "--model", quick_base, "--out", "o", "--dry-run").code == 2
    assert aegis("export-gguf", "--model", quick_base, "--out", "p", "--quant", "Q4_K_X", "--dry-run").code == 2
    assert aegis("merge", "--run", "nowhere", "--dry-run").code == 2
    assert aegis("quantize-study", "--run", "nowhere", "--dry-run").code == 2
    assert aegis("quantize-study", "--run", "o", "--dry-run").code == 5
    assert "imatrix+head-q8_0" in aegis("quantize-study", "--run", "o", "--variants", "plain,imatirx", "--dry-run").err


def test_init_writes_a_config_that_runs(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    ended = aegis("init", "--base-model", quick_base, "--dataset", dataset, "--out", "my run.toml")
    assert ended.code == 0, ended.err
    assert "next: aegis plan --config 'my run.toml'" in ended.out
    ended = aegis("train", "--config", "my run.toml", "--run", "r", *SMALL)
    assert ended.code == 0, ended.err
    config = read_manifest(tmp_path / "r" / "adapter").config
    assert (config["base_model"], config["dataset"]) == (str(quick_base), str(dataset))
    before = (tmp_path / "my run.toml").read_bytes()
    assert aegis("init", "--base-model", "demo", "--dataset", "demo", "--out", "my run.toml").code == 2
    assert (tmp_path / "my run.toml").read_bytes() == before
    ended = aegis("init", "--base-model", "demo", "--dataset", "demo", "--out", "my run.toml", "--overwrite")
    assert (ended.code, (tmp_path / "my run.toml").read_bytes() == before) == (0, False)


def test_init_asks_only_on_a_terminal(aegis: Aegis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Elsewhere it names the missing flag."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    ended = aegis("init")
    assert (ended.code, "--base-model VALUE" in ended.err) == (2, True)
    terminal = io.StringIO("borea-12gb\n\nmine.jsonl\n")
    (tmp_path / "mine.jsonl").touch()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    ended = aegis("init")
    assert ended.code == 0, ended.err
    assert "Base model" in ended.err
    assert "borea-12gb" in ended.err
    written = tomllib.loads((tmp_path / "aegis.toml").read_text(encoding="utf-8"))
    assert written["train"] == {"base_model": PRESETS["borea-12gb"]["train"]["base_model"], "dataset": "mine.jsonl"}
    assert written["export"] == PRESETS["borea-12gb"]["export"]
    ended = aegis("init", "--preset", "demo", "--overwrite")
    assert (ended.code, tomllib.loads((tmp_path / "aegis.toml").read_text())["train"]) == (0, PRESETS["demo"]["train"])


def test_the_shell_completes_commands_and_options(spawn: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    """The script for the shell, and what it asks for at each tab."""
    done = spawn(_AEGIS_COMPLETE="complete_bash", COMP_WORDS="aegis ex", COMP_CWORD="1")
    assert (done.returncode, done.stdout.split()) == (0, [b"export-gguf"]), done.stderr
    done = spawn(_AEGIS_COMPLETE="complete_bash", COMP_WORDS="aegis train --max-l", COMP_CWORD="2")
    assert (done.returncode, done.stdout.split()) == (0, [b"--max-length"]), done.stderr
    for words, wanted in (("--preset bo", b"borea-12gb"), ("--quant Q8", b"Q8_0"), ("--load-in 1", b"16bit")):
        line = f"aegis run {words}"
        done = spawn(_AEGIS_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="3")
        assert (done.returncode, done.stdout.split()) == (0, [wanted]), (words, done)
    done = spawn(_AEGIS_COMPLETE="source_bash")
    assert (done.returncode, b"complete -o default -F _aegis_completion aegis" in done.stdout) == (0, True)


def test_the_process_ends_with_the_commands_exit_code(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr(train_stage, "train", raising(typer.Exit(5)))
    assert aegis(*DEMO).code == 5


def test_one_part_can_be_verified_by_itself(aegis: Aegis, quick_base: Path, tmp_path: Path) -> None:
    """`verify PATH` names the part and its problems, exits with 0 or 5, and with --json prints one line."""
    ended = aegis("verify", quick_base)
    assert ended.code == 0, ended
    assert ended.out.endswith("no problems found (checked on its own)\n")
    copy = shutil.copytree(quick_base, tmp_path / "copy")
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"tie_word_embeddings": True}))
    ended = aegis("verify", copy)
    assert ended.code == 5
    assert "FAIL  head untied" in ended.out
    assert "problems found: the fault is in" in ended.out
    ended = aegis("verify", copy, "--json")
    assert ended.code == 5
    report = json.loads(ended.out.splitlines()[-1])["report"]
    assert report["kind"] == "model_folder"
    failed = [check for check in report["checks"] if not check["ok"]]
    assert [check["name"]["key"] for check in failed] == ["structure.stock"]
    assert failed[0]["detail"]["key"] == "structure.tied"
    assert aegis("verify", copy, "--tokens", 99).code == 2
    assert aegis("verify", tmp_path / "absent").code == 2


def test_import_soul_reports_the_rotation_and_the_next_command(aegis: Aegis, tmp_path: Path) -> None:
    """The command says whether R is a rotation, what to type next, and refuses to write over a file."""
    import torch

    rotation = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(32, 32, bias=False))
    torch.save({"alpha": torch.tensor(1.0), "so8_rotation": rotation.state_dict(), "step": 7}, tmp_path / "soul.pt")
    ended = aegis("import-soul", "soul.pt", "--out", "soul.safetensors")
    assert ended.code == 0, ended
    assert "step 7" in ended.out
    assert "(det +1)" in ended.out or "reflection (det −1)" in ended.out
    assert "--soul soul.safetensors" in ended.out
    assert aegis("import-soul", "soul.pt", "--out", "soul.safetensors").code == 2
    (tmp_path / "soul.pt").write_bytes(b"no pickle")
    assert aegis("import-soul", "soul.pt", "--out", "other.safetensors").code == 5


def test_output_to_a_cp932_pipe_works(
    spawn: Callable[..., subprocess.CompletedProcess[bytes]], quick_base: Path, dataset: Path
) -> None:
    """Japanese Windows, forty columns, no terminal: Greek letters and coloured circles may be lost, nothing else."""
    arguments = ("train", "--base-model", quick_base, "--dataset", dataset, "--run", "走る", *SMALL)
    done = spawn(*arguments, PYTHONIOENCODING="cp932", COLUMNS="40")
    out, err = done.stdout.decode("cp932"), done.stderr.decode("cp932")
    assert done.returncode == 0, err
    assert "Traceback" not in err
    assert ESCAPE not in out + err
    assert str(Path("走る") / "adapter") in out
    assert "loss" in err
    assert "Stable" in err


def test_the_exit_code_is_the_same_without_a_reader_of_stderr() -> None:
    """The exit code gets out even so."""
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.Popen(
        [sys.executable, "-m", "aegis", "train", "--max-steps", "0"],
        stdout=writer,
        stderr=writer,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])},
    )
    os.close(writer)
    assert child.wait(60) == 2


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly() -> None:
    """As with `| head`: no traceback, and the exit code a shell gives for it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "aegis", "train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])},
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    with child.stderr:
        printed = child.stderr.read().decode()
    assert child.wait(60) == 141, printed
    assert printed == ""


def test_only_training_may_have_several_processes(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aegis run` under a launcher would merge as often as there are processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = aegis("run", "--preset", "demo", "--device", "cpu")
    assert ended.code == 2
    assert "launch aegis train" in ended.err


def test_a_bound_on_kept_text_without_keep_is_refused_before_training() -> None:
    """Known from the settings; with keep on the same bound is taken."""
    with pytest.raises(UsageError) as caught:
        all_settings("demo", None, {"keep_weight": 0.0, "max_kept_kl": 0.1})
    assert caught.value.text.key == "verify.kept_nothing"
    assert all_settings("demo", None, {"max_kept_kl": 0.1}).verify.max_kept_kl == 0.1
