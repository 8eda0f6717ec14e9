"""Takes the first half of a verification on a GPU while llama.cpp's converter and quantizer use the processor."""

from __future__ import annotations

import shutil
import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from aegis.background import Background
from aegis.config.settings import VerifyConfig
from aegis.model.device import choose_device
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run
from aegis.verification.converted_file import ConvertedFile
from aegis.verification.examination import Examination


class EarlyHalf:
    """The first half of a verification, in the background while a `with` block runs.

    After it, llama.cpp begins with the f16 GGUF as soon as export leaves it: the quantizer needs the cores no more.

    Args:
        work: a folder for the models' logits, until the verification is done. They have a folder of their own in it.
            If this half fails, that folder is removed, and the verification records all logits itself.
    """

    def __init__(self, run: Run, config: VerifyConfig, work: Path, converted: ConvertedFile) -> None:
        self._run, self._config, self._converted = run, config, converted
        self._work = work / "early"
        self._stop, self._open = threading.Event(), ExitStack()
        self._half = Background(self._taken, self._stop)

    def examination(self) -> Examination | None:
        """Wait for it; None if anything was wrong: then the verification finds it by itself, and reports it."""
        self._converted.settle()
        return self._half.result()

    def _taken(self) -> Examination | None:
        begun = self._begun()
        if begun is None:
            shutil.rmtree(self._work, ignore_errors=True)
            return None
        if self._converted.is_left() and not self._stop.is_set():
            self._open.enter_context(begun.in_llama.running())
            begun.in_llama.add("f16", self._converted.path)
        return begun

    def _begun(self) -> Examination | None:
        try:
            self._work.mkdir()
            parts = self._run.verified_parts
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
        self._stop.set()
        self._converted.settle()  # an export that failed leaves nothing
        self._half.end()
        self._open.close()


def early_half(
    run: Run, config: VerifyConfig, work: Path, converted: ConvertedFile
) -> AbstractContextManager[EarlyHalf | None]:
    """Begin the verification of a merged run before there is a GGUF; None without a GPU, which has cores to spare."""
    on_gpu = choose_device(config.device).type == "cuda" and not config.paranoid
    return EarlyHalf(run, config, work, converted) if on_gpu else nullcontext()
