"""Defects of files beside the GGUF files, and of their sources."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from aegis.runs.manifest import file_sha256
from aegis.runs.run import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul, save_soul
from tests.planted.finished import Defect, Finished, edit_json, put, reseal

Plant = Callable[[Finished, Run], None]


def text(name: str, pattern: str, new: str) -> Plant:
    def plant(_finished: Finished, run: Run) -> None:
        path = run.gguf / name
        before = path.read_text(encoding="utf-8")
        after = re.sub(pattern, new, before, count=1, flags=re.MULTILINE)
        assert before != after
        put(path, after)
        reseal(run.gguf)

    return plant


def file_added(_finished: Finished, run: Run) -> None:
    put(run.gguf / "params", "{}")
    reseal(run.gguf)


def file_lost(_finished: Finished, run: Run) -> None:
    (run.gguf / "Modelfile").unlink()
    reseal(run.gguf)


def unlisted(_finished: Finished, run: Run) -> None:
    """Remove the quantized file from the manifest."""

    def change(document: dict) -> None:  # type: ignore[type-arg]
        del document["facts"]["files"]["Q4_K_M"]

    edit_json(run.gguf / "manifest.json", change)


def other_context(_finished: Finished, run: Run) -> None:
    edit_json(run.gguf / "manifest.json", lambda document: document["facts"].update(context_tokens=131072))


def reflected(_finished: Finished, run: Run) -> None:
    path = run.adapter / SOUL_FILE
    soul = load_soul(path)
    soul.rotation[0, :, 0] *= -1
    path.unlink()
    save_soul(path, replace(soul, reflection=True))
    reseal(run.adapter)
    reseal(run.merged, soul=file_sha256(path))


def other_base(_finished: Finished, run: Run) -> None:
    """Name another base in every manifest."""
    reseal(run.adapter, base="0" * 64)
    reseal(run.merged, base="0" * 64)


SIDECAR_DEFECTS = (
    Defect("a stop removed from the Modelfile", "convert", text("Modelfile", r"^PARAMETER stop .*\n", "")),
    Defect("TEMPLATE changed in the Modelfile", "convert", text("Modelfile", "assistant", "Assistant")),
    Defect("FROM changed in the Modelfile", "convert", text("Modelfile", r"^FROM \./", "FROM ./other-")),
    Defect("num_ctx changed in the Modelfile", "convert", text("Modelfile", r"num_ctx \d+", "num_ctx 131072")),
    Defect("card of gguf/", "convert", text("README.md", "adapter merged", "adapter, merged")),
    Defect("a hash in the card", "convert", text("README.md", r"`[0-9a-f]{64}`", f"`{'0' * 64}`")),
    Defect("a file more", "convert", file_added),
    Defect("Modelfile lost", "convert", file_lost),
    Defect("quantized file not listed", "quantize", unlisted),
    Defect("context that the manifest gives", "convert", other_context),
    Defect("soul that says it is a reflection", "train", reflected),
    Defect("another base than the one that is there", "train", other_base),
)
