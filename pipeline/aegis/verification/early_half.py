"""Takes the first half of a verification on a GPU while llama.cpp's converter and quantizer use the processor."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from aegis.background import Background
from aegis.config.settings import VerifyConfig
from aegis.model.device import choose_device
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run
from aegis.verification.examination import Examination


def early_half(
    run: Run, config: VerifyConfig, work: Path
) -> AbstractContextManager[Background[Examination | None] | None]:
    """Begin the verification of a merged run before there is a GGUF; None without a GPU, which has cores to spare.

    Args:
        work: a folder for the models' logits, until the verification is done.
    """
    on_gpu = choose_device(config.device).type == "cuda" and not config.paranoid
    return taking_half(run, config, work) if on_gpu else nullcontext()


def taking_half(run: Run, config: VerifyConfig, work: Path) -> Background[Examination | None]:
    """Take the first half in the background; see `early_half`.

    Returns:
        Its result is None if anything was wrong: then the verification finds it by itself, and reports it.
    """
    stop = threading.Event()
    return Background(partial(_half, run, config, work, stop), stop)


def _half(run: Run, config: VerifyConfig, work: Path, stop: threading.Event) -> Examination | None:
    parts = run.verified_parts
    try:
        manifests = {stage: read_manifest(parts[stage]) for stage in ("train", "merge")}
        begun = Examination.begin(run, config, manifests, work)
        begun.take_half(stop)
    except Exception:
        return None
    return begun if begun.has_half else None
