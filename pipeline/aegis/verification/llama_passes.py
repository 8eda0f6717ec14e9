"""Runs a verification's GGUF files in llama.cpp, one after the other, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from aegis.background import Background, stop_if_asked
from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime
from aegis.messages import phrase
from aegis.verification.divergence import Logits, Recording, record
from aegis.verification.logits import llama_logits, repeats_one_token

_PROMPT_TOKENS, _SPOKEN_TOKENS = 8, 32
_LOOK_S = 0.2


class LlamaPasses:
    """The passes of GGUF files over the same token ids, in the order in which the files are added.

    While a file runs, the next one is loaded, if memory has room for both.

    Args:
        work: folder for the recorded logits.
        device: where the logits will be compared.
        threads: for llama.cpp; the physical cores if None.
        advance: called with the number of tokens of each finished sequence.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        work: Path,
        device: torch.device,
        *,
        threads: int | None,
        end_token: int | None,
        advance: Callable[[float], None],
    ) -> None:
        self._sequences, self._work, self._device = sequences, work, device
        self._threads, self._end_token, self._advance = threads, end_token, advance
        self._files: dict[str, Path] = {}
        self._coming: queue.Queue[tuple[str, Path]] = queue.Queue()
        self._recorded: dict[Path, Recording] = {}
        self._news, self._stopped = threading.Event(), threading.Event()
        self._running_bytes: int | None = None
        self._running: Background[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether `running` has begun."""
        return self._running is not None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the files beside the block; at its end, stop after the sequence that is running."""
        with Background(self._run, self._stopped) as self._running:
            yield

    def add(self, name: str, file: Path) -> None:
        """Let a file run after those before it; nothing happens if it was added before."""
        if self._files.get(name) != file:
            self._files[name] = file
            self._coming.put((name, file))

    def recording(self, name: str) -> Recording:
        """Wait for a file's logits.

        Raises:
            IntegrityError: a model returned NaN or Inf; or a quantized file repeats one token for ever, and the f16
                file does not.
        """
        assert self._running is not None, "not inside of `running`"
        file = self._files[name]
        while file not in self._recorded:
            # in this order: a later file may have failed after this one was done
            if self._running.is_over and file not in self._recorded:
                self._running.result()
            self._news.wait(_LOOK_S)
            self._news.clear()
        return self._recorded[file]

    def wait(self) -> None:
        """Wait until all files that were added have run, or one has failed."""
        with suppress(IntegrityError):
            for name in self._files:
                self.recording(name)

    def _run(self) -> None:
        f16_repeats = False
        opening = Background(self._open_next)
        try:
            while True:
                name, file, runtime = opening.result()
                with runtime:
                    self._running_bytes = file.stat().st_size  # once it has run, it may be removed at any time
                    opening = Background(self._open_next)
                    found, repeats = self._pass(name, runtime)
                self._running_bytes = None
                if name == "f16":
                    f16_repeats = repeats
                elif repeats and not f16_repeats:
                    raise IntegrityError("verify.repeats", path_name=file.name, spoken_tokens=_SPOKEN_TOKENS)
                self._recorded[file] = found
                self._news.set()
        finally:
            self._stopped.set()
            with suppress(Exception):  # this one's error is not what ended the passes
                opening.result()[2].close()

    def _open_next(self) -> tuple[str, Path, Runtime]:
        while True:
            with suppress(queue.Empty):
                name, file = self._coming.get(timeout=_LOOK_S)
                break
            stop_if_asked(self._stopped)
        while (running := self._running_bytes) is not None and not _has_room_for(file, running):
            self._stopped.wait(_LOOK_S)
            stop_if_asked(self._stopped)
        room = max(*map(len, self._sequences), _PROMPT_TOKENS + _SPOKEN_TOKENS)
        return name, file, Runtime(file, n_ctx=room, threads=self._threads, logits=True)

    def _pass(self, name: str, runtime: Runtime) -> tuple[Recording, bool]:
        """Return a file's logits, and whether it repeats one token."""
        outputs = llama_logits(runtime, self._sequences, phrase("verify.in_llama", name=name))
        found = record(self._work / f"{name}.npy", self._counted(outputs), self._sequences, self._device)
        prompt = list(self._sequences[0][:_PROMPT_TOKENS])
        return found, repeats_one_token(runtime, prompt, self._end_token, _SPOKEN_TOKENS)

    def _counted(self, outputs: Iterable[Logits]) -> Iterator[Logits]:
        for logits in outputs:
            stop_if_asked(self._stopped)
            yield logits
            self._advance(len(logits))


def _has_room_for(file: Path, running_bytes: int) -> bool:
    """Whether memory has room for a file, a copy that llama.cpp repacks, and the pages of the one that runs."""
    return psutil.virtual_memory().available > 2 * file.stat().st_size + running_bytes
