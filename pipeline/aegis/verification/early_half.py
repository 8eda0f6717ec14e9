"""Takes the first half of a verification on a GPU while llama.cpp's converter and quantizer use the processor."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from aegis.background import Background
from aegis.config.settings import VerifyConfig
from aegis.model.device import choose_device
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run
from aegis.verification.examination import Examination


class EarlyHalf:
    """The first half of a run's verification, made in the background; it ends with its `with` block.

    Args:
        work: a folder for the models' logits, until the verification is done.
    """

    def __init__(self, run: Run, config: VerifyConfig, work: Path) -> None:
        self._run, self._config, self._work = run, config, work
        self._stop = threading.Event()
        self._running = Background(self._take, self._stop)

    def result(self) -> Examination | None:
        """Wait for the end; None if anything was wrong: then the verification finds it by itself, and reports it."""
        return self._running.result()

    def _take(self) -> Examination | None:
        parts = self._run.verified_parts
        try:
            manifests = {stage: read_manifest(parts[stage]) for stage in ("train", "merge")}
            begun = Examination.begin(self._run, self._config, manifests, self._work)
            begun.take_half(self._stop)
        except Exception:
            return None
        return begun if begun.has_half else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.end()


def early_half(run: Run, config: VerifyConfig, work: Path) -> AbstractContextManager[EarlyHalf | None]:
    """Begin the verification of a merged run before there is a GGUF; None without a GPU, which has cores to spare.

    Args:
        work: a folder for the models' logits, until the verification is done.
    """
    on_gpu = choose_device(config.device).type == "cuda" and not config.paranoid
    return EarlyHalf(run, config, work) if on_gpu else nullcontext()
