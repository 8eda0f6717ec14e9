"""The door: every setting a flag, every failure an exit code and a message, and output for whoever reads it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aegis import cli, progress
from aegis.config import ExportConfig, MergeConfig, StageConfig, TrainConfig, VerifyConfig
from aegis.manifest import read_manifest
from aegis.runs import Run
from aegis.stages import train as train_stage

ROOT = Path(__file__).parents[1]
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
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Aegis]:
    """Run `aegis …` in this process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["aegis", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, told.out, told.err)

    yield run
    progress.install(progress.SilentReporter())


@pytest.fixture
def spawn(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `python -m aegis …` in a process of its own."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AEGIS_"))}
        return subprocess.run(
            [sys.executable, "-m", "aegis", *map(str, arguments)],
            cwd=tmp_path,
            env=inherited
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)]),
                "AEGIS_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "cache"),
                "HF_HUB_OFFLINE": "1",
                **environment,
            },
            capture_output=True,
            timeout=240,
        )

    return run


SMALL = ("--device", "cpu", "--max-length", 32, "--lora-r", 2, "--heldout-rows", 0, "--max-steps", 2, "--save-steps", 2)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    row = {"messages": [{"role": "user", "content": "春の花は?"}, {"role": "assistant", "content": "桜でござる。"}]}
    path.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 40, encoding="utf-8")
    return path


@pytest.mark.parametrize("command", [[], ["train"], ["merge"], ["export-gguf"], ["verify"], ["run"], ["chat"]])
def test_help_loads_no_torch(command: list[str]) -> None:
    """It comes at once: torch, transformers and llama.cpp stay where they are."""
    code = (
        "import sys; sys.argv = ['aegis', *{command}, '--help']\n"
        "from aegis import cli\n"
        "try: cli.main()\n"
        "except SystemExit as ended: code = ended.code\n"
        "heavy = {{'torch', 'transformers', 'peft', 'bitsandbytes', 'llama_cpp', 'gguf', 'numpy'}} & set(sys.modules)\n"
        "print('HEAVY', code, sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format(command=command)],
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
    ],
)
def test_every_setting_has_a_flag(aegis: Aegis, command: str, models: list[type[StageConfig]]) -> None:
    """Each field of the stage's config, with its description, in the command's help."""
    told = aegis(command, "--help")
    words = "".join(told.out.split())
    assert told.code == 0
    for model in models:
        for name, field in model.model_fields.items():
            assert f"--{name.replace('_', '-')}" in told.out, name
            if len(models) == 1:  # one flag may serve two stages, and has one text
                assert "".join(str(field.description).split()) in words, name


def test_version(aegis: Aegis) -> None:
    from aegis import __version__

    assert aegis("--version") == Ended(0, f"{__version__}\n", "")


def test_nothing_at_all_is_a_call_for_help(aegis: Aegis) -> None:
    told = aegis()
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("Usage: aegis [OPTIONS] COMMAND")
    assert all(command in told.out for command in ("train", "merge", "export-gguf", "verify", "run", "chat"))


def test_the_originals_dry_run_works(aegis: Aegis, quick_base: Path, tmp_path: Path) -> None:
    """The command line of the original's README, word for word but for the base: steps, and a line of what is next."""
    told = aegis(
        "train", "--base-model", quick_base, "--max-steps", 10, "--batch-size", 1, "--max-length", 256, "--dry-run"
    )
    assert (told.code, "10 of 10 steps taken" in told.out) == (0, True), told.err
    assert list(tmp_path.iterdir()) == []


def test_the_originals_training_works(aegis: Aegis, quick_base: Path, tmp_path: Path) -> None:
    """All eight of the original's options, no dataset and no run: the embedded data, artifacts/<name of the base>."""
    base = tmp_path / "Borea Phi"
    shutil.copytree(quick_base, base)
    told = aegis(
        *("train", "--base-model", base, "--max-steps", 2, "--warmup-steps", 1, "--annealing-steps", 1),
        *("--batch-size", 1, "--max-length", 64, "--learning-rate", "2e-4", "--save-steps", 1),
    )
    assert told.code == 0, told.err
    run = Run(tmp_path / "artifacts" / "Borea-Phi")
    config = read_manifest(run.adapter).config
    assert config["learning_rate"] == 2e-4
    assert (config["max_steps"], config["max_length"], config["dataset"]) == (2, 64, "demo")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_000001", "step_000002"]
    assert "next: aegis merge --run artifacts/Borea-Phi" in told.out.replace("\\", "/")
    assert ESCAPE not in told.out + told.err
    again = aegis("train", "--base-model", base, "--max-steps", 2)
    assert (again.code, "exists" in again.err) == (2, True)


def test_json_is_all_there_is_on_stdout(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    """Through train and merge: every line of stdout parses, metrics are among them, and the result is the last."""
    told = aegis("--json", "train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert told.code == 0, told.err
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert {"begin", "end", "message", "metrics", "result"} <= {row["event"] for row in rows}
    assert rows[-1]["event"] == "result"
    assert rows[-1]["report"]["steps"] == 2
    assert Path(rows[-1]["report"]["adapter"]) == Path("r") / "adapter"
    told = aegis("--json", "merge", "--run", "r")
    assert told.code == 0, told.err
    assert json.loads(told.out.splitlines()[-1])["report"]["untied"] is False
    told = aegis("--json", "merge", "--run", "r")
    assert (told.code, told.out) == (2, "")

    # the same run, once more: a base with other weights is not the one it was trained on
    other = tmp_path / "other"
    shutil.copytree(quick_base, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-2] ^= 1
    (other / "model.safetensors").write_bytes(data)
    told = aegis("merge", "--base-model", other, "--adapter", "r/adapter", "--out", "merged")
    assert (told.code, "was not trained on" in told.err) == (5, True)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["train", "--base-model", "./nowhere"], 2, "no base model at './nowhere'"),
        (["train", "--base-model", "owner/name"], 3, "not in the local cache"),
        (["train", "--base-model", "{base}", "--dataset", "absent.jsonl"], 2, "absent.jsonl"),
        (["train", "--base-model", "{base}", "--dataset", "{base}"], 2, ""),
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
        (["merge"], 2, "there is no run at"),
        (["merge", "--base-model", "x"], 2, "which model is to be merged?"),
        (["merge", "--run", ".", "--soul", "x"], 2, "--soul"),
        (["merge", "--base-model", "{base}", "--adapter", ".", "--out", "o"], 2, "not an adapter folder"),
        (["export-gguf", "--model", "{base}"], 2, "which model is to be exported?"),
        (["export-gguf", "--model", "{base}", "--out", "o", "--quant", "Q4_K_X"], 2, "Did you mean Q4_K_"),
        (["export-gguf", "--model", "{base}", "--out", "{base}"], 2, "exists"),
        (["export-gguf", "--model", ".", "--out", "o"], 2, "no config.json"),
        (["chat", "--gguf", "absent.gguf", "-p", "x"], 2, "absent.gguf"),
        (["chat", "--run", "."], 5, "manifest.json"),
    ],
)
def test_failures_have_a_code_and_a_message(
    aegis: Aegis, quick_base: Path, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    """The exit code of its class, what is wrong on stderr, nothing on stdout, nothing left behind, no traceback."""
    ended = aegis(*(argument.replace("{base}", str(quick_base)) for argument in arguments))
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert ended.err.startswith("aegis: ") or "warning" in ended.err or "\naegis: " in ended.err
    assert told in ended.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_bad_data_names_the_line(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    lines = dataset.read_text(encoding="utf-8").splitlines()
    lines[36] = '{"messages": ['
    dataset.write_text("\n".join(lines), encoding="utf-8")
    told = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert told.code == 4
    assert "37" in told.err
    dataset.write_text("")
    told = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert told.code == 4
    assert not (tmp_path / "r").exists()


def test_no_disk_is_the_environments_fault(
    aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    told = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
    assert (told.code, "not enough disk for the checkpoints" in told.err) == (3, True)
    assert not (tmp_path / "r").exists()


def test_a_held_run_is_exit_8(aegis: Aegis, quick_base: Path, dataset: Path, tmp_path: Path) -> None:
    with Run(tmp_path / "r").lock():
        told = aegis("train", "--base-model", quick_base, "--dataset", dataset, "--run", "r", *SMALL)
        assert (told.code, f"process {os.getpid()}" in told.err) == (8, True)
        assert aegis("merge", "--run", "r").code == 8
        assert aegis("export-gguf", "--run", "r").code == 8


def raising(error: BaseException) -> Callable[..., object]:
    def stage(*_: object, **__: object) -> object:
        raise error

    return stage


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "/x/y cannot be used"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 2, "Read-only file system"),
    ],
)
def test_what_the_system_says(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    """Ctrl-C, a full disk anywhere, a path that may not be written: no traceback."""
    monkeypatch.setattr(train_stage, "train", raising(error))
    ended = aegis("train")
    assert (ended.code, told in ended.err) == (code, True), ended.err


def test_our_own_bugs_keep_their_traceback(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_stage, "train", raising(ZeroDivisionError("ours")))
    monkeypatch.setattr(sys, "argv", ["aegis", "train"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_commands_exit_code_gets_out(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr(train_stage, "train", raising(typer.Exit(5)))
    assert aegis("train").code == 5


def test_a_narrow_cp932_pipe(
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


def test_nobody_reads_the_complaint() -> None:
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


def test_a_reader_that_goes_away() -> None:
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
        told = child.stderr.read().decode()
    assert child.wait(60) == 141, told
    assert told == ""


def test_several_processes_share_training_only(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aegis run` under a launcher would merge as often as there are processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = aegis("run", "--device", "cpu")
    assert told.code == 2
    assert "launch aegis train" in told.err
