"""The model of a server, in a confined process, so that a request that crashes llama.cpp ends only this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import chat_formatter_to_chat_completion_handler
from llama_cpp.server.app import prepare_request_resources
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest

from aegis.errors import EnvironmentFault, UsageError
from aegis.llama_cpp._log import captured_log
from aegis.llama_cpp.answering.first_space import without_first_space
from aegis.llama_cpp.chat_template import ChatTemplate
from aegis.llama_cpp.confined import Caller, Message
from aegis.llama_cpp.repacking import keep_from_amx

_NO_ARGUMENTS = {"n", "best_of", "logit_bias_type", "user", "min_tokens"}

_loaded: list[_Model] = []


def answers(message: Message, caller: Caller) -> Iterator[Message]:
    """Load the model on the first request; answer each later one, in one piece or streamed."""
    fields = message.fields
    if not _loaded:
        _loaded.append(_load(Path(fields["path"]), fields["name"], fields["context"], fields["threads"]))
        return
    (model,) = _loaded
    yield from map(Message, model.answers(fields["kind"], fields["request"], caller))


class _Model(llama_cpp.Llama):  # type: ignore[misc]
    """A model that answers under its name, stops when the client leaves, and refuses an unusable grammar.

    For a grammar that it cannot parse, llama.cpp returns a null pointer, with which the bindings would crash.
    """

    def __init__(self, path: Path, name: str, **settings: Any) -> None:
        super().__init__(model_path=str(path), **settings)
        self._name = name
        self._caller: Caller | None = None
        self._chat = chat_formatter_to_chat_completion_handler(ChatTemplate(self))

    def answers(self, kind: str, request: dict[str, Any], caller: Caller) -> Iterator[dict[str, Any]]:
        """Yield the complete answer, or its pieces if it is streamed."""
        self._caller = caller
        chat = kind == "chat"
        body = (CreateChatCompletionRequest if chat else CreateCompletionRequest)(**request)
        arguments = body.model_dump(exclude=_NO_ARGUMENTS)
        prepare_request_resources(body, lambda _: self, None, arguments)
        answer = self._chat(llama=self, **arguments) if chat else self.create_completion(**arguments)
        pieces = iter(answer) if body.stream else iter([answer])
        return without_first_space(pieces) if chat else pieces

    def create_completion(self, prompt: Any, *, grammar: Any = None, **settings: Any) -> Any:
        """Complete a prompt as the bindings do, after the check of the grammar."""
        if grammar is not None:
            self._refuse_unusable(grammar)
        settings["model"] = self._name  # by default it would be the path on this disk
        settings["stopping_criteria"] = llama_cpp.StoppingCriteriaList([self._is_cancelled])
        return super().create_completion(prompt, grammar=grammar, **settings)

    def _is_cancelled(self, *_: object) -> bool:
        assert self._caller is not None
        self._caller.let_wait()
        return self._caller.has_left

    def _refuse_unusable(self, grammar: Any) -> None:
        captured_log().clear()
        text, root = grammar._grammar.encode(), grammar._root.encode()
        sampler = llama_cpp.llama_sampler_init_grammar(self._model.vocab, text, root)
        if not sampler:
            raise UsageError("serving.bad_grammar", text="\n".join(captured_log()))
        llama_cpp.llama_sampler_free(sampler)


def _load(path: Path, name: str, context: int, threads: int) -> _Model:
    captured_log().clear()
    keep_from_amx()
    settings = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    try:
        return _Model(path, name, **settings)
    except ValueError as error:
        text = "\n".join((str(error), *list(captured_log())[-10:]))
        raise EnvironmentFault("server.cannot_run", path_name=path.name, context=context, text=text) from error
