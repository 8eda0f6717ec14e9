"""Tests of the log file: every command writes it, it has a maximum size and no secrets, and never stops a command."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis import progress
from aegis.cli import logfile


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the log file; the handler is removed afterwards."""
    monkeypatch.setenv("AEGIS_LOG_DIR", str(tmp_path / "logs"))
    root = logging.getLogger()
    before, level, raising = list(root.handlers), logging.getLogger("aegis").level, logging.raiseExceptions
    yield tmp_path / "logs" / "aegis.log"
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers = before
    logging.getLogger("aegis").setLevel(level)
    logging.raiseExceptions = raising


def test_the_log_has_the_shown_messages(log: Path) -> None:
    """The command, its messages and warnings, and those of libraries, also without a reporter."""
    logfile.begin(["train", "--max-steps", "3"])
    progress.say("merging")
    progress.warn("slow")
    logging.getLogger("some.library").warning("a warning of theirs")
    text = log.read_text(encoding="utf-8")
    assert all(part in text for part in ("train --max-steps 3", "INFO aegis: merging", "WARNING aegis: slow"))
    assert "a warning of theirs" in text


def test_the_log_has_the_traceback(log: Path) -> None:
    logfile.begin(["train"])
    try:
        raise ZeroDivisionError("ours")
    except ZeroDivisionError as error:
        logfile.ended_by(error)
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "ZeroDivisionError: ours" in text
    assert Path(__file__).name in text


SECRET = "hf_AbCdEfGhIjKlMnOpQrStUv"


@pytest.mark.parametrize(
    "text",
    [
        f"token {SECRET}",
        f"Authorization: Bearer {SECRET}",
        "Authorization: Bearer another-kind-of-token",
        "https://user:another-kind-of-token@example.org/x",
        "somebody's own: s3cr3t-value-of-HF_TOKEN",
    ],
)
def test_the_log_has_no_secrets(log: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """In messages, on the command line, in the text of an error."""
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-value-of-HF_TOKEN")
    logfile.begin(["train", text])
    progress.warn(text)
    try:
        raise ValueError(text)
    except ValueError as error:
        logfile.ended_by(error)
    written = log.read_text(encoding="utf-8")
    assert written.count("…") >= 3
    for secret in (SECRET, "another-kind-of-token", "s3cr3t"):
        assert secret not in written


def test_the_log_has_a_maximum_size(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "_FILE_BYTES", 2000)
    logfile.begin([])
    for number in range(500):
        progress.say(f"line {number}")
    files = sorted(path.name for path in log.parent.iterdir())
    assert files == ["aegis.log", "aegis.log.1", "aegis.log.2", "aegis.log.3"]
    assert sum(path.stat().st_size for path in log.parent.iterdir()) <= 8000
    assert "line 499" in log.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_stops_no_command(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AEGIS_LOG_DIR", str(tmp_path / "file"))
    logfile.begin([])
    progress.say("x")
    (log.parent / "aegis.log").mkdir(parents=True)
    monkeypatch.setenv("AEGIS_LOG_DIR", str(log.parent))
    logfile.begin([])
    progress.say("x")
    assert capsys.readouterr() == ("", "")


def test_a_second_command_in_one_process_logs_each_line_once(log: Path) -> None:
    """A second command in one process, as in a notebook, writes each line once."""
    logfile.begin(["one"])
    logfile.begin(["two"])
    progress.say("said")
    assert log.read_text(encoding="utf-8").count("said") == 1


def test_the_log_is_in_the_users_log_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    from platformdirs import user_log_dir

    monkeypatch.delenv("AEGIS_LOG_DIR", raising=False)
    assert logfile.log_path() == Path(user_log_dir("aegis-soul")) / "aegis.log"


def test_the_log_has_no_control_codes(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text of a library or an untrusted file is escaped, in the log and under --debug."""
    logfile.begin(["train", "\x1b]0;owned\x07"])
    try:
        raise ValueError("\x1b[2J\x9b")
    except ValueError as error:
        logfile.ended_by(error)
        logfile.show(error)
    for text in (log.read_text(encoding="utf-8"), capsys.readouterr().err):
        assert "\\x1b[2J\\x9b" in text
        assert not set(text) & {"\x1b", "\x07", "\x9b"}


def test_one_long_message_does_not_fill_the_log(log: Path) -> None:
    logfile.begin(["train"])
    progress.warn("begins " + "x" * 1_000_000 + " ends")
    text = log.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert "begins" in text
    assert " ends" in text


def test_a_librarys_own_log_handler_shows_no_secret_and_no_control_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """huggingface_hub and transformers print to stderr past the root logger; the control is the same before."""
    monkeypatch.setenv("HF_ENDPOINT", "http://user:s3cr3t-word@hub.example")
    library, output = logging.getLogger("aegis-test.library"), io.StringIO()
    library.propagate = False
    handler = logging.StreamHandler(output)
    library.addHandler(handler)
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)  # a command of an earlier test may have replaced it
    try:
        library.warning("cannot reach %s \x1b[2J", "s3cr3t-word")
        assert "s3cr3t" in output.getvalue()
        output.truncate(0)
        logfile.show_safely()
        library.warning("cannot reach %s \x1b[2J", "s3cr3t-word")
        library.warning("100 % of it")
    finally:
        logging.setLogRecordFactory(factory)
        library.removeHandler(handler)
    assert "s3cr3t" not in output.getvalue()
    assert "\\x1b[2J" in output.getvalue()
    assert "100 % of it" in output.getvalue()
