"""The log file: every command, its messages, and the traceback if it failed. Bounded, and without secrets."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from aegis import __version__
from aegis.messages.safe import shown

VARIABLE = "AEGIS_LOG_DIR"
_FILE_BYTES, _OLD_FILES = 1_000_000, 3
_RECORD_CHARACTERS = 100_000

_log = logging.getLogger("aegis")


def log_path() -> Path:
    """Return the path of aegis.log, in AEGIS_LOG_DIR or in this system's folder for user logs."""
    from platformdirs import user_log_dir

    given = os.environ.get(VARIABLE)
    # not `Path.expanduser`, which raises for an unknown user: errors are shown with the path of their log
    return Path(os.path.expanduser(given) if given else user_log_dir("aegis-soul")) / "aegis.log"  # noqa: PTH111


def begin(arguments: Sequence[str]) -> None:
    """Start logging to the file, including warnings of libraries; if it cannot be written, go on without a log."""
    logging.raiseExceptions = False
    path = log_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _File)]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(_File(path))
    _log.setLevel(logging.INFO)
    _log.info("aegis %s: %s", __version__, " ".join(arguments))


def ended_by(error: BaseException) -> None:
    """Log the traceback of the error that ended the command."""
    _log.error("ended by %s", type(error).__name__, exc_info=error)


def show(error: BaseException) -> None:
    """Print the traceback, for --debug."""
    sys.stderr.write(shown("".join(traceback.format_exception(error))))


def show_safely() -> None:
    """Make the text of every library's log record safe, because some libraries print with their own handlers."""
    plain = logging.getLogRecordFactory()

    def make(*arguments: Any, **settings: Any) -> logging.LogRecord:
        record = plain(*arguments, **settings)
        with suppress(Exception):  # a message that does not fit its arguments is its handler's to report
            record.msg, record.args = shown(record.getMessage()), None
        return record

    logging.setLogRecordFactory(make)


class _File(RotatingFileHandler):
    """One file and three older ones of 1 MB each; opened at the first line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_FILE_BYTES, backupCount=_OLD_FILES, encoding="utf-8", delay=True)
        self.setFormatter(_Shown("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))


class _Shown(logging.Formatter):
    """Makes a record's complete text, with addresses and traceback, safe as for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        # a record may quote a complete row of data: its two ends are enough
        cut = len(text) - _RECORD_CHARACTERS
        return shown(text if cut <= 0 else f"{text[: _RECORD_CHARACTERS // 2]} … {text[-_RECORD_CHARACTERS // 2 :]}")
