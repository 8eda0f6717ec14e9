"""The rows of bench_train: settings of `aegis train` by part, and texts that fill windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegis.demo.corpus import documents

CORE = [
    {"max_length": length, "activation_checkpointing": mode}
    for length in (512, 2048, 4096)
    for mode in ("off", "offload")
]
MORE = [
    {"max_length": 512, "activation_checkpointing": "on"},
    {"max_length": 2048, "activation_checkpointing": "on"},
    {"max_length": 4096, "activation_checkpointing": "on"},
    {"max_length": 2048, "activation_checkpointing": "off", "dataset": "short"},
    {"max_length": 512, "activation_checkpointing": "off", "compile": "off"},
    {"max_length": 512, "activation_checkpointing": "off", "compile": "off", "cuda_graphs": "off"},
]
DENSE = [{"max_length": length, "activation_checkpointing": "off", "rotation": "dense"} for length in (512, 2048, 4096)]
LONG = [
    {"max_length": 30000, "activation_checkpointing": "on", "cuda_graphs": "off", "gpu_memory_gib": 12},
    {"max_length": 60000, "activation_checkpointing": "offload", "cuda_graphs": "off", "gpu_memory_gib": 12},
]
LONG_STEPS = 3
CAPPED = [{"max_length": 512, "activation_checkpointing": "auto", "gpu_memory_gib": 3}]
AUTO = [{"max_length": length, "activation_checkpointing": "auto"} for length in (512, 2048, 4096)]
OFFLOADED = [{"max_length": 4096, "activation_checkpointing": "auto", "gpu_memory_gib": 9.8}]
"""A cap under which 10 of Phi-3.5's 32 layers are offloaded, by the estimate."""
FORCED = [
    {"max_length": length, "offloaded_layers": offloaded_layers}
    for length in (512, 2048, 4096)
    for offloaded_layers in (0, 4, 8, 12, 16)
]
"""How many layers can be offloaded before the copies take longer than the step: `planning.offload_or_checkpoint`."""
KEEP: list[dict[str, Any]] = [
    {"max_length": 512, "keep_weight": 0.0},
    {"max_length": 512, "keep_weight": 1.0},
    {"max_length": 512, "keep_weight": 1.0, "rotation": "dense"},
    {"max_length": 512, "keep_weight": 1.0, "keep_every": 2},
]
"""The defaults with and without keep; the base writes its text in the first row that keeps."""
PARTS = {
    "core": CORE,
    "auto": AUTO,
    "dense": DENSE,
    "more": MORE,
    "long": LONG,
    "capped": CAPPED,
    "offloaded": OFFLOADED,
    "forced": FORCED,
    "keep": KEEP,
}


def write_long(path: Path, characters: int) -> None:
    """Documents longer than any window, so that every window is full."""
    whole = "\n".join(documents(0, 3000))
    with path.open("w", encoding="utf-8") as file:
        for _ in range(max(1, characters // len(whole))):
            file.write(json.dumps({"text": whole}, ensure_ascii=False) + "\n")


def write_short(path: Path) -> None:
    """Short documents, many to a window."""
    rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents(0, 3000))
    path.write_text("".join(rows), encoding="utf-8")
