"""Runs a GGUF in llama.cpp: token ids, logits, text and chat."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from aegis.errors import EnvironmentFault, IntegrityError, UsageError
from aegis.llama_cpp._log import captured_log
from aegis.llama_cpp.chat_template import ChatTemplate, Message
from aegis.llama_cpp.loading import refuse_fatal
from aegis.llama_cpp.repacking import as_in_the_file, keep_from_amx
from aegis.llama_cpp.text_stream import joined
from aegis.llama_cpp.threads import default_threads


class Runtime:
    """A GGUF loaded by llama.cpp on the CPU. Use it in a `with` block, because it holds the complete model.

    No call depends on earlier ones: each starts with an empty context.
    """

    def __init__(
        self,
        path: Path,
        n_ctx: int = 4096,
        threads: int | None = None,
        logits: bool = False,
        *,
        vocab_only: bool = False,
        repack: bool = True,
    ) -> None:
        """Load a file.

        Args:
            path: the GGUF.
            n_ctx: maximum tokens of the context. Above a LongRoPE model's original length (4096 for Phi-3.5), llama.cpp
                uses the long factors for every prompt, even a short one, and the output differs.
            threads: number of threads; the physical cores if None.
            logits: keep the logits of every position, for `logits`. This reserves n_ctx · vocabulary · 4 bytes of
                address space; only evaluated positions take memory.
            vocab_only: load the tokenizer without weights; this is enough for token ids.
            repack: spend seconds on weights that are quicker afterwards; a few tokens are not worth it.

        Raises:
            UsageError: there is no such file.
            IntegrityError: it is damaged, or llama.cpp cannot run it.
            EnvironmentFault: there is not enough memory for the context.
            DataError: its chat template cannot be compiled in bounds.
        """
        import llama_cpp

        self.path = path
        self.n_ctx = n_ctx
        self._keeps_logits = logits
        self._has_weights = not vocab_only
        threads = threads or default_threads()
        with nullcontext() if repack else as_in_the_file():
            self._llama: Any = _load(path, n_ctx, threads, logits_all=logits, vocab_only=vocab_only)
        self._binding: Any = llama_cpp
        self._vocab = self._llama._model.vocab
        self._template = ChatTemplate(self._llama)

    def tokenize(self, text: str, *, add_bos: bool, special: bool = True) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: any string.
            add_bos: add the tokens that the file's flags `add_bos_token` and `add_eos_token` ask for, perhaps none.
                False adds nothing.
            special: read "<|end|>" and the like as special tokens, not as characters.
        """
        tokens: list[int] = self._llama.tokenize(text.encode("utf-8"), add_bos=add_bos, special=special)
        return tokens

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each token, (len(tokens), vocabulary) float32, from an empty context.

        Raises:
            UsageError: there are more tokens than the context holds.
        """
        assert self._keeps_logits, "the runtime was opened with logits=True"
        tokens = self._known(tokens)
        self._refuse_overlong(len(tokens))
        self._llama.reset()
        self._llama.eval(tokens)
        return np.array(self._llama.scores[: len(tokens)], np.float32)

    def likely_tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """Yield the most likely token after a prompt, then the most likely one after that, and so on."""
        self._llama.reset()
        yield from self._llama.generate(self._known(prompt), temp=0.0)

    def seconds_a_token(self, tokens: Sequence[int]) -> float:
        """Return the median seconds per token when tokens are evaluated one by one, as when a text is written.

        Raises:
            UsageError: there are more tokens than the context holds.
        """
        tokens = self._known(tokens)
        self._refuse_overlong(len(tokens))
        self._llama.reset()
        self._llama.eval(tokens[:1])
        taken = []
        for token in tokens[1:]:
            began = time.perf_counter()
            self._llama.eval([token])
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> Iterator[str]:
        """Continue a prompt; yield text piece by piece, and a character of several tokens as one piece.

        The model's end-of-text tokens end the text.

        Args:
            prompt: text, tokenized by the file's own flags, or token ids.
            max_tokens: maximum tokens, limited by the context as well.
            temperature: 0 always takes the most likely token; above 0, llama.cpp's default samplers are used.
            seed: the same seed gives the same text on the same machine.

        Raises:
            UsageError: the prompt does not fit the context.
        """
        tokens = self.tokenize(prompt, add_bos=True) if isinstance(prompt, str) else self._known(prompt)
        self._refuse_overlong(len(tokens) + 1)
        if not tokens:
            raise UsageError("runtime.nothing_continue")
        return joined(self._pieces(tokens, max_tokens, temperature, seed))

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int = 256,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> Iterator[str]:
        """Answer a conversation with the file's own chat template; see `complete`."""
        return self.complete(self.chat_tokens(messages), max_tokens, temperature, seed)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return llama.cpp's ids of a conversation, up to the assistant's next turn.

        Args:
            messages: each has "role" and "content".

        Raises:
            IntegrityError: the file has no chat template.
            DataError: the template refuses the conversation, does not finish, or takes too much memory.
        """
        if not self._template:
            raise IntegrityError("runtime.no_chat_template", path=self.path)
        rendered = self._template(messages=[dict(message) for message in messages])
        return self.tokenize(rendered.prompt, add_bos=not rendered.added_special)

    def close(self) -> None:
        """Free the model and its context."""
        self._llama.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(self, tokens: list[int], max_tokens: int, temperature: float, seed: int) -> Iterator[bytes]:
        left = min(max_tokens, self.n_ctx - len(tokens))
        if left <= 0:
            return
        self._llama.reset()
        self._llama.set_seed(seed)
        for token in self._llama.generate(tokens, temp=temperature):
            if self._binding.llama_vocab_is_eog(self._vocab, token):
                return
            yield self._piece(token)
            left -= 1
            if not left:
                return

    def _piece(self, token: int) -> bytes:
        return _filled(
            lambda buffer, size: self._binding.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
        )

    def _known(self, tokens: Sequence[int]) -> list[int]:
        known = [int(token) for token in tokens]
        size = self._llama.n_vocab()
        if unknown := [token for token in known if not 0 <= token < size]:
            raise UsageError("runtime.unknown_token", unknown=unknown[0], size=size)
        return known

    def _refuse_overlong(self, n_tokens: int) -> None:
        assert self._has_weights, "the runtime was opened with its weights"
        if n_tokens > self.n_ctx:
            raise UsageError("runtime.context_full", n_tokens=n_tokens, n_ctx=self.n_ctx)


def _filled(fill: Callable[[Any, int], int]) -> bytes:
    """Return what llama.cpp writes into a buffer; call it again with a larger one if it needs more.

    The bindings' own `token_to_piece` returns its complete buffer with zeros, and cuts at 32 bytes.
    """
    buffer = ctypes.create_string_buffer(64)
    written = fill(buffer, len(buffer))
    if written < 0:
        buffer = ctypes.create_string_buffer(-written)
        written = fill(buffer, len(buffer))
    return buffer.raw[:written]


def _load(path: Path, n_ctx: int, threads: int, **options: bool) -> Any:
    """Load the binding's own object; an error has llama.cpp's last log lines."""
    import llama_cpp

    refuse_fatal(path)
    log = captured_log()
    log.clear()
    keep_from_amx()
    try:
        return llama_cpp.Llama(
            model_path=os.fspath(path.absolute()),
            n_ctx=n_ctx,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
            **options,
        )
    except ValueError as error:
        text = "\n".join((str(error), *list(log)[-10:]))
        if "llama_context" in str(error):
            raise EnvironmentFault("runtime.no_context", n_ctx=n_ctx, text=text) from error
        raise IntegrityError("runtime.cannot_load", path=path, text=text) from error
