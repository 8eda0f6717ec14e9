"""Serves an application to a real browser for the time of a test, as `aegis` does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from aegis import progress
from aegis.report.web import local


def served(app: Any) -> AbstractContextManager[str]:
    """Return a context whose value is the address of the running application."""
    return local.beside(app, 0, progress.say)
