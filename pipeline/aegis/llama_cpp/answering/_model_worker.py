"""The model of a server, in a confined process, so that a request that crashes llama.cpp ends only this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import chat_formatter_to_chat_completion_handler
from llama_cpp.server.app import prepare_request_resources

from aegis.errors import EnvironmentFault, UsageError
from aegis.llama_cpp._log import captured_log
from aegis.llama_cpp.answering.first_space import without_first_space
from aegis.llama_cpp.answering.request_forms import ChatRequest, CompletionRequest
from aegis.llama_cpp.chat_template import ChatTemplate
from aegis.llama_cpp.confined import Caller, Message
from aegis.llama_cpp.repacking import keep_from_amx

_NO_ARGUMENTS = {"n", "best_of", "logit_bias_type", "user", "min_tokens", "stream_options"}

_ERROR_CHARS = 300

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
        self._prompt_tokens = self._answer_tokens = 0
        self._chat = chat_formatter_to_chat_completion_handler(ChatTemplate(self))

    def answers(self, kind: str, request: dict[str, Any], caller: Caller) -> Iterator[dict[str, Any]]:
        """Yield the complete answer, or its pieces if it is streamed."""
        self._caller = caller
        chat = kind == "chat"
        body = (ChatRequest if chat else CompletionRequest)(**request)
        arguments = body.model_dump(exclude=_NO_ARGUMENTS)
        if chat:
            _refuse_unconvertible(_schema_of(body))
        prepare_request_resources(body, lambda _: self, None, arguments)
        answer = self._chat(llama=self, **arguments) if chat else self.create_completion(**arguments)
        pieces = iter(answer) if body.stream else iter([answer])
        if body.stream and body.stream_options and body.stream_options.include_usage:
            pieces = self._with_usage(pieces)
        return without_first_space(pieces) if chat else pieces

    def generate(self, tokens: Sequence[int], *arguments: Any, **settings: Any) -> Iterator[int]:
        """Continue a prompt as the bindings do, and count its tokens and the answer's, without the one that ends it."""
        if not tokens:
            raise UsageError("runtime.nothing_continue")
        self._prompt_tokens, self._answer_tokens = len(tokens), 0
        for token in super().generate(tokens, *arguments, **settings):
            self._answer_tokens += not llama_cpp.llama_vocab_is_eog(self._model.vocab, token)
            yield token

    def _with_usage(self, pieces: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Add OpenAI's last piece, which has the counts of tokens and no choice."""
        piece: dict[str, Any] = {}
        for piece in pieces:
            yield {**piece, "usage": None}
        counts = {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._answer_tokens}
        yield {**piece, "choices": [], "usage": {**counts, "total_tokens": sum(counts.values())}}

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


def _schema_of(body: Any) -> Any:
    """Return the JSON schema that a chat's answer must have, of its own or of the tool that it must call; or None."""
    if isinstance(body.function_call, dict) and body.functions:
        chosen, functions = body.function_call.get("name"), body.functions
    elif isinstance(body.tool_choice, dict) and body.tools:
        chosen, functions = body.tool_choice["function"]["name"], [tool["function"] for tool in body.tools]
    else:
        return (body.response_format or {}).get("schema")
    return next((function["parameters"] for function in functions if function["name"] == chosen), None)


def _refuse_unconvertible(schema: Any) -> None:
    """Refuse a schema of which the bindings make no grammar: they would let the model write any JSON."""
    if schema is None:
        return
    try:
        llama_cpp.LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    except MemoryError:
        raise
    except Exception as error:  # the converter has asserts, and looks up keys
        raise UsageError("serving.bad_schema", error=f"{type(error).__name__}: {error}"[:_ERROR_CHARS]) from error


def _load(path: Path, name: str, context: int, threads: int) -> _Model:
    captured_log().clear()
    keep_from_amx()
    settings = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    try:
        return _Model(path, name, **settings)
    except ValueError as error:
        text = "\n".join((str(error), *list(captured_log())[-10:]))
        raise EnvironmentFault("server.cannot_run", path_name=path.name, context=context, text=text) from error
