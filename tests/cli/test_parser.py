"""Tests of wrong command lines: they are refused in the user's language, in AEGIS's form, with exit code 2."""

from __future__ import annotations

import sys

import pytest

from aegis.cli import app
from aegis.messages import VARIABLE
from tests.screen_texts import english_in

KINDS = "'so8', 'so16', 'so32', 'so64', 'so96', 'so128', 'so192', 'so256', 'dense'"
REFUSED = {
    "import-soul": ("Missing argument SOUL.", "引数 SOUL を指定してください"),
    "train --max-step 3": (
        "No such option: --max-step (Possible options: --max-steps, --save-steps, --warmup-steps)",
        "オプション --max-step はありません（近いもの: --max-steps, --save-steps, --warmup-steps）",
    ),
    "train -z": ("No such option: -z", "オプション -z はありません"),
    "--nope train": ("No such option: --nope", "オプション --nope はありません"),
    "train --max-steps": (
        "Option '--max-steps' requires an argument.",
        "オプション '--max-steps' には値が必要です",
    ),
    "train --resume=3": (
        "Option '--resume' does not take a value.",
        "オプション '--resume' に値は付けられません",
    ),
    "train --max-steps many": (
        "Invalid value for '--max-steps': must be a whole number",
        "'--max-steps' の値が正しくありません: 整数を指定してください",
    ),
    "report --samples -1": (
        "Invalid value for '--samples': must be at least 0",
        "'--samples' の値が正しくありません: 0 以上の値を指定してください",
    ),
    "train --rotation cubic": (
        f"Invalid value for '--rotation': 'cubic' is not one of {KINDS}.",
        f"'--rotation' の値が正しくありません: 'cubic' は使えません。使えるもの: {KINDS}",
    ),
    "train a.txt b.txt": (
        "Got unexpected extra argument(s) (a.txt b.txt)",
        "余分な引数があります: a.txt b.txt",
    ),
    "trian": (
        "No such command 'trian'. Did you mean 'train'?",
        "コマンド 'trian' はありません。'train' のことですか？",
    ),
    "zzz": ("No such command 'zzz'.", "コマンド 'zzz' はありません"),
    "--quiet": ("Missing command.", "コマンドを指定してください"),
}


@pytest.mark.parametrize("line", REFUSED)
@pytest.mark.parametrize("spoken", ["en", "ja"])
def test_a_wrong_command_line_is_refused_in_the_users_language(
    line: str, spoken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, spoken)
    monkeypatch.setattr(sys, "argv", ["aegis", *line.split()])
    with pytest.raises(SystemExit) as ended:
        app.main()
    what, fix = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert what == f"aegis: {REFUSED[line][spoken == 'ja']}"
    own = "aegis" if line.startswith("-") or line in ("trian", "zzz") else f"aegis {line.split()[0]}"
    assert fix.startswith(f"  do: {own} --help" if spoken == "en" else f"  対処: {own} --help")
    assert spoken == "en" or english_in(f"{what}\n{fix}") == []


def test_an_unknown_parse_error_keeps_its_message() -> None:
    """The parser may learn new ones."""
    from aegis.cli.parser import describe_parse_error

    class SomethingNew(Exception):
        ctx = None

        def format_message(self) -> str:
            return "something new"

    assert describe_parse_error(SomethingNew()) == "something new"
