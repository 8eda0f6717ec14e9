"""The model of a server, in a process of its own: what a request makes of llama.cpp ends this process at worst."""

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
from aegis.llama_cpp.amx import keep_from_amx
from aegis.llama_cpp.chat_template import ChatTemplate
from aegis.llama_cpp.confined import Caller, Message
from aegis.llama_cpp.serving.first_space import without_first_space

_NO_ARGUMENTS = {"n", "best_of", "logit_bias_type", "user", "min_tokens"}

_loaded: list[_Model] = []


def answers(message: Message, caller: Caller) -> Iterator[Message]:
    """Load the model, the first time; then answer a request: whole, or piece by piece, as it asks."""
    fields = message.fields
    if not _loaded:
        _loaded.append(_load(Path(fields["path"]), fields["context"], fields["threads"]))
        return
    (model,) = _loaded
    yield from map(Message, model.answers(fields["kind"], fields["request"], caller))


class _Model(llama_cpp.Llama):  # type: ignore[misc]
    """A model that names its file, leaves off when nobody listens, and refuses a grammar that llama.cpp does not take.

    llama.cpp gives no grammar for one that it does not understand, and the bindings would use that: a crash.
    """

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(model_path=str(path), **settings)
        self._name = path.stem
        self._caller: Caller | None = None
        self._chat = chat_formatter_to_chat_completion_handler(ChatTemplate(self))

    def answers(self, kind: str, request: dict[str, Any], caller: Caller) -> Iterator[dict[str, Any]]:
        """The one answer, or its pieces."""
        self._caller = caller
        chat = kind == "chat"
        body = (CreateChatCompletionRequest if chat else CreateCompletionRequest)(**request)
        arguments = body.model_dump(exclude=_NO_ARGUMENTS)
        prepare_request_resources(body, lambda _: self, None, arguments)
        made = self._chat(llama=self, **arguments) if chat else self.create_completion(**arguments)
        pieces = iter(made) if body.stream else iter([made])
        return without_first_space(pieces) if chat else pieces

    def create_completion(self, prompt: Any, *, grammar: Any = None, **settings: Any) -> Any:
        """As the bindings' own, which this calls."""
        if grammar is not None:
            self._refuse_unusable(grammar)
        settings["model"] = self._name  # it would be the path on this disk
        settings["stopping_criteria"] = llama_cpp.StoppingCriteriaList([self._nobody_listens])
        return super().create_completion(prompt, grammar=grammar, **settings)

    def _nobody_listens(self, *_: object) -> bool:
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


def _load(path: Path, context: int, threads: int) -> _Model:
    captured_log().clear()
    keep_from_amx()
    settings = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    try:
        return _Model(path, **settings)
    except ValueError as error:
        text = "\n".join((str(error), *list(captured_log())[-10:]))
        raise EnvironmentFault("server.cannot_run", path_name=path.name, context=context, text=text) from error
