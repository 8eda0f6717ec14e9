"""Tests that no untrusted name can control the terminal that shows it or the shell that it is pasted into."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aegis.errors import IntegrityError
from aegis.messages import Bilingual, bilingual, phrase
from aegis.messages.safe import printable, shell_program, shell_word, shown
from aegis.messages.secrets import malformed_address, without_secrets

WINDOW_TITLE = "\x1b]0;owned\x07"
CLIPBOARD = "\x1b]52;c;cm0gLXJm\x1b\\"
HOSTILE = [
    WINDOW_TITLE,
    CLIPBOARD,
    "\x1b[2J",
    "\x9b2J",
    "\x9d0;x\x9c",
    "a\rb",
    "\b\b",
    "\x7f",
    "\u202etxt.exe",
    "\ud800",
]
COMMANDS = [
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "a\ntouch pwned",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_control_codes_are_escaped_wherever_a_message_is_formatted(text: str) -> None:
    error = IntegrityError("base.unreadable", path=f"/x/{text}", error=text)
    given = bilingual("origin.unreadable_card", path=text, name=text)
    for printed in (
        phrase("base.downloading", name=text),
        *(str(error), error.what, error.why, error.text.english),
        *(given.shown, given.in_language("ja"), Bilingual.same(text).shown, Bilingual.joined("\n", [given]).english),
    ):
        assert "\\" in printed
        assert not any(ord(c) < 32 and c != "\n" for c in printed)
        assert not any(c in printed for c in "\x7f\x9b\x9c\x9d\u202e\ud800")
        assert printed == printable(printed)


@pytest.mark.parametrize("text", ["日本語、𠮷、😀", "a\nb\tc", "é ½ ←", "زبان", "\u200d"])
def test_ordinary_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == phrase("base.downloading", name=text).partition(" ")[2] == text
    assert shown(text) == text


def test_a_windows_line_end_is_one_line_end() -> None:
    assert printable("a\r\nb") == "a\nb"


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize("name", [*COMMANDS, "my run", "-x", "日本 語", "plain"])
def test_a_pasted_command_runs_no_command_hidden_in_a_name(tmp_path: Path, name: str) -> None:
    """The control: in double quotes, the shell would run it."""

    def paste(command: str) -> str:
        return subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout

    run = f"/runs/{name}"
    assert paste(f"printf %s {shell_word(Path(run))}") == run
    printed = phrase("train.go_on", run_root=run)
    assert paste(f"printf '%s|' {printed.partition('aegis ')[2]}") == f"train|--resume|--run|{run}|"
    assert not (tmp_path / "pwned").exists()
    paste(f'printf %s "{run}"')
    assert (tmp_path / "pwned").exists() == (name in ("$(touch pwned)", "`touch pwned`", '"; touch pwned; "'))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (r"C:\runs\mine", r"C:\runs\mine"),
        (r"C:\my runs", r"'C:\my runs'"),
        ("$(calc)", "'$(calc)'"),
        ("it's", "'it''s'"),
        ("it\u2019s", "'it\u2019\u2019s'"),
        ("a;b", "'a;b'"),
        ("@args", "'@args'"),
        ("日本", "日本"),
        ("", "''"),
    ],
)
def test_commands_for_powershell_have_its_quotes(name: str, word: str) -> None:
    assert shell_word(name, windows=True) == word
    assert shell_program(name, windows=True) == (f"& {word}" if word.startswith("'") else word)


ADDRESSES = [
    "https://user:s3cr3t-word@proxy.example:3128",
    "user:s3cr3t-word@proxy.example:3128",
    "http://user:s3cr3t-word%40x@proxy.example",
    "http://user:s3cr3t-word@x:yz@proxy.example",
    "http://s3cr3t-word@proxy.example",
]


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_the_password_of_a_used_address_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    monkeypatch.setenv(variable, address)
    for text in (address, address.rpartition("@")[0], "Invalid port: 's3cr3t-word'", "('user', 's3cr3t-word@x')"):
        for printed in (
            str(IntegrityError("base.unreadable", path="x", error=text)),
            phrase("base.trying_again", error=text, wait_s=1),
            shown(text),
        ):
            assert "s3cr3t" not in printed
            assert "…" in printed


def test_an_address_without_a_password_and_ordinary_words_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/api")
    monkeypatch.setenv("HTTPS_PROXY", "http://u:abc@proxy.example")
    for text in ("https://hub.example/api", "the alphabet begins with abc", "hf_transfer", "owner/name@main"):
        assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("address", "malformed"),
    [
        ("http://user:s3cr3t/word@hub.example", True),
        ("http://user:word@hub.example:port", True),
        ("http://[::1@hub.example", True),
        ("http://user:s3cr3t%2Fword@hub.example:8080", False),
        ("https://hub.example", False),
        ("", False),
    ],
)
def test_an_address_that_cannot_be_parsed_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, address: str, malformed: bool
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert malformed_address() == ("HF_ENDPOINT" if malformed else None)
