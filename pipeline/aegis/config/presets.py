"""The presets: named groups of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEMO = "demo"
"""The name of the embedded default: a preset, a base model and a data set."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # small enough for two CPU cores; borea-12gb has the settings of full size
    "demo": {
        "train": {
            "base_model": DEMO,
            "dataset": DEMO,
            "max_steps": 320,
            "warmup_steps": 32,
            "annealing_steps": 192,
            "batch_size": 8,
            "max_length": 128,
            "learning_rate": 6e-3,
            "lr_schedule": "cosine",
            "logging_steps": 20,
            "save_steps": 160,
            "sample_steps": "100",
            # the demo changes how every question is answered: only the base's documents are kept
            "keep_chats": False,
            "keep_weight": 2.0,
            "finish_keep": 1.0,
            # the most is learned per nat that is forgotten: tools/README.md, "The soul and keep on a real model"
            "lora_targets": ["all-linear"],
        },
        "export": {"name": "AEGIS-tiny-Phi-3"},
    },
    # the target base on a 12 GB card: all numbers are the settings' defaults
    "borea-12gb": {
        "train": {"base_model": "AXCXEPT/Borea-Phi-3.5-mini-Instruct-Jp"},
        "export": {"name": "AEGIS-Borea-Phi-3.5-mini-Instruct-Jp"},
    },
    # the original without changes, as a control: orthogonal(nn.Linear(d, d)), mixed = h + g·R h
    "original": {
        "train": {
            "base_model": "AXCXEPT/Borea-Phi-3.5-mini-Instruct-Jp",
            "rotation": "dense",
            "rotation_init": "random",
            "counter_scale": False,
            "keep_weight": 0.0,
        },
        "export": {"name": "AEGIS-original-Borea-Phi-3.5-mini-Instruct-Jp"},
    },
}
