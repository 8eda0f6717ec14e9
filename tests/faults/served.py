"""The server's door as a parser of hostile input: a request's body, up to the last word of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from aegis.errors import UsageError

_TOKENS = 4
HONEST = {
    "messages": [{"role": "system", "content": "短く。"}, {"role": "user", "content": "春は？"}],
    "max_tokens": _TOKENS,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 1,
    "stop": ["。"],
    "logit_bias": {"5": 1.0},
    "stream": True,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
}
_GRAMMARS = st.one_of(
    st.sampled_from(
        [
            'root ::= "a"', "root ::= root root", "root ::= nothing", 'root ::= ("a"{0,1000}){0,1000}',
            'root ::= ""*', "root ::= [", "root ::= (", 'root ::= "a" | root "b"', "",
        ]
    ),
    st.lists(st.sampled_from(["root", "::=", '"a"', "(", ")", "*", "{0,9}", "|", "[a-z]", "\n", "x"]), max_size=12).map(
        " ".join
    ),
)  # fmt: skip


def requests(spoiled: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Honest requests that were spoiled, and requests with a grammar or a schema that may be none."""
    grammars = _GRAMMARS.map(lambda grammar: {**HONEST, "grammar": grammar})
    schemas = st.recursive(
        st.sampled_from([{}, {"type": "string"}, {"type": "integer"}, {"$ref": "#"}, {"enum": []}, {"type": "x"}]),
        lambda inner: st.dictionaries(st.sampled_from(["items", "not", "a"]), inner, max_size=2).map(
            lambda properties: {"type": "object", "properties": properties, **properties}
        ),
        max_leaves=4,
    ).map(lambda schema: {**HONEST, "response_format": {"type": "json_object", "schema": schema}})
    return st.one_of(spoiled, st.one_of(grammars, schemas).map(lambda request: json.dumps(request).encode()))


def feed_to(gguf: Path) -> Callable[[bytes, Path], None]:
    """What answers a body with a model; the model's process stays for the next."""
    from aegis.llama_cpp.answering.engine import Engine
    from aegis.llama_cpp.answering.read_request import checked
    from aegis.llama_cpp.answering.refusal import Refusal

    engine = Engine(gguf, gguf.stem, 256, 1)
    engine.start()

    async def answer(wanted: Any) -> None:
        async for _ in engine.answers("chat", wanted):
            pass

    def feed(body: bytes, _place: Path) -> None:
        try:
            wanted = checked(body, "chat")
            wanted.max_tokens = _TOKENS
            asyncio.run(answer(wanted))
        except Refusal as refusal:
            output = json.dumps(refusal.body)
            if refusal.status != 400 or str(gguf.parent) in output:
                raise RuntimeError(output) from None
            raise UsageError("serving.bad_grammar", text=output) from None

    return feed
