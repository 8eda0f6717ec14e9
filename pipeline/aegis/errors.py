"""Every failure a person can do something about.

AegisError                     exit code
├── UsageError                 2    the command line, the config file, a path
├── EnvironmentFault           3    GPU, disk, memory, a tool that is not installed
│   └── PeerEnded              3    another process of the same training is gone
├── DataError                  4    the training text
├── IntegrityError             5    a file is not what its manifest says, or does not fit
│   └── UnsupportedModelError  5    the base cannot come out of this pipeline unharmed
├── DivergedError              6    loss or gradient is NaN or Inf
├── ToolError                  7    llama.cpp's converter or quantizer failed
├── LockedError                8    another run holds the directory
└── Interrupted                129 / 130 / 143    SIGHUP, SIGINT, SIGTERM

Anything else that reaches the top is our bug: it keeps its traceback and exits 1.
"""

from __future__ import annotations

from typing import Any

from aegis.messages import Bilingual, ErrorText, error_texts


class AegisError(Exception):
    """A failure told as three short texts: what happened, why, and what to do now.

    Args:
        key: of its message, "module.name".
        values: what fills the message's places.

    Attributes:
        what, why, fix: in the reader's language.
        recorded: the same for a report, which is in English as far as the values are.
    """

    exit_code = 1

    def __init__(self, key: str, /, **values: object) -> None:
        super().__init__(key)
        self.english, (self.what, self.why, self.fix) = error_texts(key, **values)

    def __str__(self) -> str:
        return _lines(ErrorText(self.what, self.why, self.fix))

    @property
    def told(self) -> Bilingual:
        """All of it, for a report and for the reader."""
        return Bilingual(_lines(self.english), str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # the texts are all that another process needs; the values may not go through a pipe
        return _told, (type(self), self.__dict__)


def _lines(told: ErrorText) -> str:
    return "\n".join(part for part in told if part)


def _told(kind: type[AegisError], state: dict[str, Any]) -> AegisError:
    error = kind.__new__(kind, *())
    error.__dict__ |= state
    return error


class UsageError(AegisError):
    exit_code = 2


class EnvironmentFault(AegisError):
    exit_code = 3


class PeerEnded(EnvironmentFault):
    """Another process has ended, perhaps within something that all of them share."""


class DataError(AegisError):
    exit_code = 4


class IntegrityError(AegisError):
    exit_code = 5


class UnsupportedModelError(IntegrityError):
    """Refused before any work: the base would come out wrong."""


class DivergedError(AegisError):
    exit_code = 6


class ToolError(AegisError):
    exit_code = 7


class LockedError(AegisError):
    exit_code = 8


class Interrupted(AegisError):
    """A signal ended the work after it was saved; `exit_code` is the signal's."""

    def __init__(self, key: str, /, *, exit_code: int, **values: object) -> None:
        super().__init__(key, **values)
        self.exit_code = exit_code
