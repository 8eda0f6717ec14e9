"""Every failure that a user can do something about.

AegisError                     exit code
├── UsageError                 2    the command line, the config file, a path
├── EnvironmentFault           3    GPU, disk, memory, a tool that is not installed
│   └── PeerEnded              3    another process of the same training has ended
├── DataError                  4    the training text
├── IntegrityError             5    a file is not what its manifest says, or does not fit
│   └── UnsupportedModelError  5    the base would be damaged by this pipeline
├── DivergedError              6    loss or gradient is NaN or Inf
├── ToolError                  7    llama.cpp's converter or quantizer failed
├── LockedError                8    another run holds the directory
└── Interrupted                129 / 130 / 143    SIGHUP, SIGINT, SIGTERM

Any other exception that reaches the top is a bug in AEGIS: its traceback is kept and the exit code is 1.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Self, TypeVar

from aegis.messages import Bilingual, error_texts

_Error = TypeVar("_Error", bound="AegisError")


class AegisError(Exception):
    """A failure as three short texts: what happened, why, and what to do now. Immutable.

    Args:
        key: key of the message, "module.name".
        values: values of the message's placeholders.

    Attributes:
        key, values: as given; an AegisError among the values is replaced by its text.
        text: the complete text in every language.
        texts: its three parts.
        what, why, fix: the parts in the reader's language.
    """

    exit_code = 1
    text: Bilingual

    def __init__(self, key: str, /, **values: object) -> None:
        super().__init__(key)
        self.key = key
        given = {name: value.text if isinstance(value, AegisError) else value for name, value in values.items()}
        self.text, self.texts = error_texts(key, **given)
        self.values = MappingProxyType(self.text.values)

    def __str__(self) -> str:
        return self.text.shown

    @property
    def what(self) -> str:
        return self.texts.what.shown

    @property
    def why(self) -> str:
        return self.texts.why.shown

    @property
    def fix(self) -> str:
        return self.texts.fix.shown

    def with_fix(self, fix: Bilingual) -> Self:
        """Return the same failure with another `fix`; raise it `from` the cause of this one."""
        texts = self.texts._replace(fix=fix)
        text = Bilingual.joined("\n", [part for part in texts if part.english])
        return _rebuilt(type(self), self.key, {**self.__dict__, "text": text, "texts": texts})

    def __reduce__(self) -> tuple[Any, ...]:
        state = {**self.__dict__, "values": dict(self.values)}
        return _rebuilt, (type(self), self.key, state)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class if the text is empty."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def reason(error: BaseException) -> str:
    """Return why a file operation failed, without the file's name: it may be a temporary one, which no user knows."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _rebuilt(kind: type[_Error], key: str, state: dict[str, Any]) -> _Error:
    error = kind.__new__(kind, key)
    error.__dict__ |= {**state, "values": MappingProxyType(dict(state["values"]))}
    return error


class UsageError(AegisError):
    exit_code = 2


class EnvironmentFault(AegisError):
    exit_code = 3


class PeerEnded(EnvironmentFault):
    """Another process of the training has ended, possibly during a collective operation."""


class DataError(AegisError):
    exit_code = 4


class IntegrityError(AegisError):
    exit_code = 5


class UnsupportedModelError(IntegrityError):
    """The base is refused before any work, because the result would be wrong."""


class DivergedError(AegisError):
    exit_code = 6


class ToolError(AegisError):
    exit_code = 7


class LockedError(AegisError):
    exit_code = 8


class Interrupted(AegisError):
    """A signal stopped the work after it was saved; `exit_code` is the signal's."""

    def __init__(self, key: str, /, *, exit_code: int, **values: object) -> None:
        super().__init__(key, **values)
        self.exit_code = exit_code
