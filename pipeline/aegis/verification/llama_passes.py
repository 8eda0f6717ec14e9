"""Runs a verification's GGUF files in llama.cpp, one after the other: beside checks and a GPU's passes, or later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from aegis.background import Background
from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime, spared_threads
from aegis.messages import phrase
from aegis.verification.divergence import Logits, Recording, record
from aegis.verification.logits import llama_logits, repeats_one_token

_PROMPT_TOKENS, _SPOKEN_TOKENS = 8, 32
_LOOK_S = 0.2


class LlamaPasses:
    """The passes of some GGUF files over the same token ids.

    Args:
        files: path by name; "f16" first. A file runs when it is allowed.
        work: folder for the recorded logits.
        device: where the logits will be compared.
        advance: called with the number of tokens of each finished sequence.

    Attributes:
        recorded: the logits of the finished files.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        sequences: Sequence[Sequence[int]],
        work: Path,
        device: torch.device,
        *,
        threads: int | None,
        end_token: int | None,
        advance: Callable[[float], None],
    ) -> None:
        self.recorded: dict[str, Recording] = {}
        self._files, self._sequences, self._work, self._device = files, sequences, work, device
        self._threads, self._end_token, self._advance = threads, end_token, advance
        self._allowed = {name: threading.Event() for name in files}
        self._stopped = threading.Event()
        self._running: Background[None] | None = None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run beside the block; at its end, stop after the sequence that is running."""
        self._threads = self._threads or spared_threads()
        with Background(self._run, self._stopped) as self._running:
            yield

    def allow(self, *names: str) -> None:
        """Let these files run."""
        for name in names:
            self._allowed[name].set()

    def finish(self) -> None:
        """Wait for the end, or run now; all files are allowed.

        Raises:
            IntegrityError: a model returned NaN or Inf; or a quantized file repeats one token for ever, and the f16
                file does not.
        """
        if self._running is None:
            self._run()
        else:
            self._running.result()

    def _run(self) -> None:
        prompt = list(self._sequences[0][:_PROMPT_TOKENS])
        room = max(*map(len, self._sequences), len(prompt) + _SPOKEN_TOKENS)
        repeating: list[str] = []
        for name, file in self._files.items():
            while not self._allowed[name].wait(_LOOK_S):
                self._stop_if_asked()
            with Runtime(file, n_ctx=room, threads=self._threads, logits=True) as runtime:
                outputs = llama_logits(runtime, self._sequences, phrase("verify.in_llama", name=name))
                path = self._work / f"{name}.npy"
                self.recorded[name] = record(path, self._counted(outputs), self._sequences, self._device)
                if repeats_one_token(runtime, prompt, self._end_token, _SPOKEN_TOKENS):
                    repeating.append(name)
            if name in repeating and "f16" not in repeating:
                raise IntegrityError("verify.repeats", path_name=file.name, spoken_tokens=_SPOKEN_TOKENS)

    def _stop_if_asked(self) -> None:
        if self._stopped.is_set():
            raise InterruptedError

    def _counted(self, outputs: Iterable[Logits]) -> Iterator[Logits]:
        for logits in outputs:
            self._stop_if_asked()
            yield logits
            self._advance(len(logits))
