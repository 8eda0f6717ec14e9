"""Serves a GGUF over OpenAI's protocol, with llama-cpp-python's requests and answers, to this machine only.

llama-cpp-python's own server is not used: it breaks off an answer when the next request comes, crashes on a grammar
that it cannot parse, reads a body of any size, and answers any page that is open in a browser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from aegis import progress
from aegis.errors import IntegrityError
from aegis.llama_cpp.chat_template import refuse_unusable_templates
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.llama_cpp.threads import default_threads
from aegis.report.web import local

_NEEDED = (*local.PACKAGES, "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")


def serve(
    *paths: Path,
    port: int,
    context: int,
    threads: int | None = None,
    ready: Callable[[str], None] = lambda _: None,
    log: Callable[[str], None] = progress.say,
) -> None:
    """Serve these files at 127.0.0.1 until a signal ends it; the chat page at / asks all of them.

    Args:
        port: 0 for any that is free.
        context: maximum number of tokens of a request and its answer together.
        threads: number of threads; None for the physical cores.
        ready: called with the address, http://127.0.0.1:PORT, when requests are accepted.
        log: called with a line per request.

    Raises:
        EnvironmentFault: the server's packages are not installed, the port is taken, or memory is short.
        UsageError: a file does not exist.
        IntegrityError: a file is damaged or has no chat template.
        DataError: a chat template cannot be compiled in bounds.
    """
    local.require_packages(_NEEDED)
    for path in paths:
        with GgufFile(path) as file:
            if not file.metadata.get("tokenizer.chat_template"):
                raise IntegrityError("server.no_chat_template", path=path)
            refuse_unusable_templates(file.metadata)
    with local.bound(port) as listener, ExitStack() as running:
        from aegis.chat.serving.app import make_app
        from aegis.llama_cpp.answering.engine import Engine

        engines = {}
        for name, path in zip(names_of(paths), paths, strict=True):
            engines[name] = engine = Engine(path, name, context, threads or default_threads())
            running.callback(engine.close)
            engine.start()

        def ending() -> None:
            for engine in engines.values():
                engine.close()

        local.run(make_app(engines), listener, ready, log, ending)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its own, with its folder's and a number where files have the same one."""
    names: list[str] = []
    for path in paths:
        wanted = (path.stem, f"{path.absolute().parent.name}/{path.stem}", f"{path.stem} {len(names) + 1}")
        names.append(next(name for name in wanted if name not in names))
    return names
