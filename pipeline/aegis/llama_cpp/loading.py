"""Refuses a GGUF whose vocabulary or chat template ends the process that loads it, as a token listed twice does.

The header is whole all the same. So a confined process loads the vocabulary first, which takes a second, once per file.
"""

from __future__ import annotations

import os
from pathlib import Path

from aegis.errors import IntegrityError
from aegis.llama_cpp.chat_template import refuse_unusable_templates
from aegis.llama_cpp.confined import Confined, Ended, Failed, Overdue, TooLarge
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.messages import phrase

_SECONDS = 60.0
_BYTES = 4 << 30
"""A vocabulary of 262,144 tokens takes about 200 MB."""

_confined = Confined("aegis.llama_cpp._loading_worker")
_survived: set[tuple[str, int, int]] = set()


def refuse_fatal(path: Path) -> None:
    """Refuse a file that llama.cpp does not survive.

    Raises:
        IntegrityError: it is damaged, or the process that loaded it ended, failed, or did not finish in bounds.
        DataError: a chat template cannot be compiled in bounds.
    """
    status = path.stat()
    known = (os.fspath(path.absolute()), status.st_size, status.st_mtime_ns)
    if known in _survived:
        return
    with GgufFile(path) as file:
        refuse_unusable_templates(file.metadata)
    try:
        _confined.ask({"path": known[0]}, seconds=_SECONDS, memory_bytes=_BYTES)
    except Ended as error:
        raise IntegrityError("runtime.fatal", path=path, text=str(error)) from error
    except (Overdue, TooLarge) as error:
        bounds = phrase("runtime.out_of_bounds", seconds=_SECONDS, most=_BYTES / 1e9)
        raise IntegrityError("runtime.fatal", path=path, text=bounds) from error
    except Failed as error:
        raise IntegrityError("runtime.cannot_load", path=path, text=f"{error.kind}: {error}") from error
    _survived.add(known)
