"""A server whose model writes a piece every tenth of a second and never ends; run as a file, it is `aegis serve`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from aegis.llama_cpp.confined import Caller, Message


def answers(message: Message, caller: Caller) -> Iterator[Message]:
    """Answer as the model's process does, without a model."""
    while "request" in message.fields and not caller.has_left:
        time.sleep(0.1)
        choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
        yield Message({"choices": [choice] if message.fields["request"]["stream"] else []})


if __name__ == "__main__":
    from aegis.cli import app
    from aegis.llama_cpp.answering import engine

    engine._MODULE = "tests.chat.serving.slow_model"
    sys.argv[0] = "aegis"
    app.main()
