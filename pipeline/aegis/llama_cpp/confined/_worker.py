"""The confined process, run as a file: answers requests, one after the other, with a module's `answers`.

    python -P -B _worker.py IMPORT_FROM MODULE

Requests come on stdin and answers go to stdout; text that the module prints goes to stderr. When the other end of
stdin closes, this process stops at once.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import traceback
from typing import IO, Any

_TEXT_CHARS = 2000
"""Maximum length of an exception's message; a template can raise one of a gigabyte."""


def main(import_from: str, module: str) -> None:
    """Answer requests until stdin closes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.path.insert(0, import_from)

    from aegis.llama_cpp.confined.caller import Caller
    from aegis.llama_cpp.confined.frames import Message, read
    from aegis.llama_cpp.confined.limits import limit_processor_time

    limit_processor_time(None)  # that of a confined process which started this one
    waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
    caller = Caller(replies)

    def listen() -> None:
        while (message := read(requests)) is not None:
            if "left" in message.fields:
                caller.leave(message.fields["left"])
            else:
                waiting.put(message)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    answers = importlib.import_module(module).answers
    while True:
        message = waiting.get()
        caller.come(message.fields["number"], message.fields["seconds"])
        caller.let_wait()
        _answer(answers, message, caller, replies)
        limit_processor_time(None)


def _answer(answers: Any, message: Any, caller: Any, replies: IO[bytes]) -> None:
    from aegis.errors import AegisError
    from aegis.llama_cpp.confined.frames import Message, write
    from aegis.llama_cpp.confined.limits import limited_memory

    request = Message(message.fields["request"], message.blob)
    last: dict[str, object]
    try:
        with limited_memory(message.fields["memory_bytes"]):
            for reply in answers(request, caller):
                write(replies, Message({"reply": reply.fields}, reply.blob))
                caller.give_time()
        last = {"end": True}
    except MemoryError:
        last = {"too_large": True}
    except AegisError as error:
        last = {"error": type(error).__name__, "key": error.key, "values": {**error.values}}
    except Exception as error:  # a template or a model's answer can raise anything
        last = {"failed": type(error).__name__, "text": str(error)[:_TEXT_CHARS], "trace": _trace()}
    write(replies, Message(_writable(last)))


def _trace() -> str:
    return traceback.format_exc(limit=-20)[-10 * _TEXT_CHARS :]


def _writable(fields: dict[str, object]) -> dict[str, object]:
    """Return fields for JSON: a value that JSON does not have becomes text."""
    written: dict[str, object] = json.loads(json.dumps(fields, default=str))
    return written


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        # at once: an interpreter that ends waits for the thread that listens, and the caller for an answer
        traceback.print_exc()
        os._exit(1)
