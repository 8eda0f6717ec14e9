"""The module that the tests' confined processes answer with: it does what untrusted input could make it do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from aegis.errors import DataError
from aegis.llama_cpp.confined import Caller, Message

_KEPT: list[object] = []


def answers(message: Message, caller: Caller) -> Iterator[Message]:
    """Do the request's `do`."""
    match message.fields["do"]:
        case "echo":
            yield message
        case "remember":
            _KEPT.append(message.fields["what"])
        case "recall":
            yield Message({"kept": _KEPT, "pid": os.getpid()})
        case "loop":
            while True:
                pass
        case "one call into C":
            yield Message({"number": str(3 ** (10**9))})  # 10**8 takes half a minute
        case "climb":
            text = "a"
            while True:
                text += text[: 1 << 24]
        case "climb while it answers":
            for _ in range(64):
                _KEPT.append(bytearray(b"a") * (8 << 20))
                yield Message({})
                time.sleep(0.15)  # longer than a look at the memory
        case "crash":
            os.abort()
        case "raise":
            raise ValueError("its own words" * message.fields.get("times", 1))
        case "refuse":
            raise DataError("chat.no_template", where="row 3")
        case "print":
            print("\x1b[31mnot an answer", flush=True)
            yield Message({})
            os._exit(7)
        case "be on one core":
            os.cpu_count = lambda: 1
        case "take four seconds":
            for _ in range(10):
                time.sleep(0.4)
                caller.let_wait()
            yield Message({})
        case "work for long":
            for _ in range(60):
                until = time.process_time() + 0.12
                while time.process_time() < until:
                    pass
                yield Message({})
        case "count":
            for number in range(10**9):
                if caller.has_left:
                    return
                yield Message({"number": number})
                time.sleep(0.001)
        case "fill":
            counter = Path(message.fields["counter"])
            for number in range(1000):
                part = counter.with_suffix(".part")
                part.write_text(str(number + 1), encoding="ascii")
                part.replace(counter)
                yield Message({}, bytes(1 << 20))
