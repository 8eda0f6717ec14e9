"""Run a GGUF in llama.cpp: token ids, logits, text, chat."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from aegis.errors import DataError, EnvironmentFault, IntegrityError, UsageError
from aegis.llama_cpp._log import captured_log
from aegis.llama_cpp.amx import keep_from_amx
from aegis.llama_cpp.chat_template import ChatTemplate, Message
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.llama_cpp.text_stream import joined
from aegis.llama_cpp.threads import default_threads


class Runtime:
    """A GGUF loaded by llama.cpp, on the CPU. Use it in a `with` block: it holds the whole model.

    No call depends on the ones before it: each starts from an empty context.
    """

    def __init__(
        self,
        path: Path,
        n_ctx: int = 4096,
        threads: int | None = None,
        logits: bool = False,
        *,
        vocab_only: bool = False,
    ) -> None:
        """Load it.

        Args:
            path: the GGUF.
            n_ctx: tokens the context holds. Above a LongRoPE model's original length (4096 for Phi-3.5),
                llama.cpp uses the long factors for every prompt, short ones too, and the output differs.
            threads: for the computation; the physical cores if None.
            logits: keep the logits of every position, so that `logits` works. Costs n_ctx · vocabulary · 4
                bytes of address space, of which the positions that are evaluated become memory.
            vocab_only: load the tokenizer and no weights; enough for token ids, and for a file without any.

        Raises:
            UsageError: no such file.
            IntegrityError: damaged, or not a model llama.cpp can run.
            EnvironmentFault: not enough memory for the context.
        """
        import llama_cpp

        self.path = path
        self.n_ctx = n_ctx
        self._keeps_logits = logits
        self._has_weights = not vocab_only
        self._llama: Any = _load(path, n_ctx, threads or default_threads(), logits_all=logits, vocab_only=vocab_only)
        self._binding: Any = llama_cpp
        self._vocab = self._llama._model.vocab
        self._template = ChatTemplate(self._llama)

    def tokenize(self, text: str, *, add_bos: bool, special: bool = True) -> list[int]:
        """The token ids of a text.

        Args:
            text: any string.
            add_bos: add what the file's `add_bos_token` (and `add_eos_token`) flags ask for, which may be
                nothing. False adds nothing.
            special: read "<|end|>" and its like as the tokens they name, not as letters.
        """
        tokens: list[int] = self._llama.tokenize(text.encode("utf-8"), add_bos=add_bos, special=special)
        return tokens

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after each token, float32 (len(tokens), vocabulary), evaluated from an empty context.

        Raises:
            UsageError: more tokens than the context holds.
        """
        assert self._keeps_logits, "the runtime was opened with logits=True"
        tokens = self._known(tokens)
        self._refuse_overlong(len(tokens))
        self._llama.reset()
        self._llama.eval(tokens)
        kept: NDArray[np.float32] = self._llama.scores[: len(tokens)].copy()
        return kept

    def seconds_a_token(self, tokens: Sequence[int]) -> float:
        """How long one token takes when they come one by one, as when a text is written: the median over `tokens`.

        Raises:
            UsageError: more tokens than the context holds.
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
        """Continue a prompt, piece by piece; a character made of several tokens comes whole.

        The model's own end-of-text tokens end it.

        Args:
            prompt: text, tokenized as the file's own flags ask, or token ids.
            max_tokens: at most so many, and never more than the context has room for.
            temperature: 0 takes the likeliest token each time; above it, llama.cpp's default samplers.
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
        """Answer a conversation, as `complete` does, through the file's own chat template."""
        return self.complete(self.chat_tokens(messages), max_tokens, temperature, seed)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The ids llama.cpp sees of a conversation, up to where the assistant is to speak.

        Args:
            messages: each with "role" and "content".

        Raises:
            IntegrityError: the file has no chat template.
            DataError: the template refuses the conversation.
        """
        if not self._template:
            raise IntegrityError("runtime.no_chat_template", path=self.path)
        try:
            rendered = self._template(messages=[dict(message) for message in messages])
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise DataError("runtime.template_refuses", error=str(error)) from error
        return self.tokenize(rendered.prompt, add_bos=not rendered.added_special)

    def close(self) -> None:
        """Free the model and its context."""
        self._llama.close()

    def __enter__(self) -> Runtime:
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
    """What llama.cpp writes into a buffer, which it is given again, larger, if it says that it is too small.

    The bindings' own `token_to_piece` returns its whole buffer, zeros included, and cuts at 32 bytes.
    """
    size = 64
    buffer = ctypes.create_string_buffer(size)
    written = fill(buffer, size)
    if written < 0:
        size = -written
        buffer = ctypes.create_string_buffer(size)
        written = fill(buffer, size)
    return buffer.raw[:written]


def _load(path: Path, n_ctx: int, threads: int, **options: bool) -> Any:
    """The binding's own object. What llama.cpp logged goes into the error."""
    import llama_cpp

    GgufFile(path).close()  # llama.cpp may abort() on a damaged file, and take us along
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
    except jinja2.TemplateError as error:
        raise IntegrityError("runtime.broken_chat_template", path=path, error=str(error)) from error
