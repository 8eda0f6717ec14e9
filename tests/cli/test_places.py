"""Tests of paths as people give them: with a `~`, empty, or without a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.config.resolve import resolve
from aegis.config.settings import ExportConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import UsageError
from aegis.runs.disk import at_home
from tests.cli.test_app import Aegis, aegis

__all__ = ["aegis"]

UNKNOWN = "~nobody-has-this-name/x"


def test_a_tilde_is_the_home_directory_and_an_unknown_users_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert at_home("~/x") == Path("/somewhere/x")
    assert at_home("x/~") == Path("x/~")
    with pytest.raises(UsageError) as caught:
        at_home(UNKNOWN)
    assert caught.value.key == "disk.no_home"


def test_settings_take_a_tilde_from_a_file_and_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    (tmp_path / "x.toml").write_text('[train]\nbase_model = "~/base"\n')
    found = resolve(TrainConfig, file=tmp_path / "x.toml", environment={"AEGIS_TRAIN_CHAT_TEMPLATE": "~/chat.jinja"})
    assert (found.base_model, found.chat_template) == ("/somewhere/base", Path("/somewhere/chat.jinja"))
    assert resolve(ExportConfig, flags={"imatrix": Path("~/x.gguf")}).imatrix == Path("/somewhere/x.gguf")


@pytest.mark.parametrize("key", ["base_model", "dataset", "keep_data", "chat_template"])
def test_an_empty_place_in_the_settings_is_refused(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, environment={f"AEGIS_TRAIN_{key.upper()}": ""})
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "chat --gguf ~nobody-has-this-name/x.gguf",
        "train --base-model ~nobody-has-this-name/base --dataset rows.jsonl",
        "data --dataset ~nobody-has-this-name/rows.jsonl",
        "export-gguf --run r --imatrix ~nobody-has-this-name/x.gguf",
        "import-soul .",
        "import-soul /",
        "init --dataset rows.jsonl --base-model b --out .",
        "init --dataset rows.jsonl --base-model b --out rows.jsonl/x.toml",
        "merge --base-model b --adapter a --out . --overwrite",
        "run --run= --preset demo",
        "data --dataset=",
    ],
)
def test_a_path_that_cannot_be_meant_is_a_usage_error(aegis: Aegis, tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    before = sorted(tmp_path.rglob("*"))
    ended = aegis(*line.split())
    assert ended.code == 2, ended.err
    assert "bug" not in ended.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["plan", "run", "run --dry-run", "train", "train --dry-run"])
@pytest.mark.parametrize("place", ["rows.jsonl", "rows.jsonl/run", "/dev/null", "/proc/run", "nowhere", "x" * 300])
def test_a_plan_refuses_a_run_directory_that_the_work_would_refuse(
    aegis: Aegis, tmp_path: Path, command: str, place: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "nowhere").symlink_to("absent")
    ended = aegis(*command.split(), "--preset", "demo", "--run", place)
    assert ended.code == 2, ended.err
    assert f"{place} cannot be used as a run directory" in ended.err
    is_file = place.startswith(("rows.jsonl", "/dev"))
    assert (f"{place.removesuffix('/run')} is a file" in ended.err) == is_file
    assert "loading" not in ended.err
    assert sorted(tmp_path.iterdir()) == [tmp_path / "nowhere", tmp_path / "rows.jsonl"]


@pytest.mark.parametrize("arguments", [("run", "--run", ""), ("data", ""), ("chat", "--run", "r", "--prompt", "")])
def test_an_empty_argument_is_refused(aegis: Aegis, arguments: tuple[str, ...]) -> None:
    ended = aegis(*arguments)
    assert (ended.code, "is empty" in ended.err) == (2, True)


def test_an_unknown_user_in_a_variable_is_a_usage_error(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_CACHE_DIR", UNKNOWN)
    monkeypatch.setenv("AEGIS_LOG_DIR", UNKNOWN)
    ended = aegis("plan", "--preset", "demo")
    assert ended.code == 2
    assert "no home directory" in ended.err
