"""What the study compares: settings of `aegis train` by name, each beside the settings that all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

COMMON: Mapping[str, Any] = {
    "load_in": "16bit",
    "batch_size": 8,
    "max_length": 512,
    "max_steps": 250,
    "warmup_steps": 25,
    "annealing_steps": 200,
    "lora_dropout": 0.0,
    "learning_rate": 2e-4,
    "keep_every": 4,
    "finish_steps": "off",
    "compile": "on",
    "activation_checkpointing": "off",
    "save_steps": 250,
    "logging_steps": 25,
    "heldout_rows": 500,
}
"""One optimizer step is one forward pass of 8 windows, so keep_every counts steps. A CPU does not compile. At most a
tenth of the rows is held out."""


class Cell(NamedTuple):
    """One kind of training.

    Attributes:
        settings: of `aegis train`, beside COMMON.
        finish: the type of the file that a finish computes with.
        shipped: the types of the files that are measured.
    """

    settings: Mapping[str, Any]
    finish: str = "Q4_K_M"
    shipped: tuple[str, ...] = ()


QUANTS = ("Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "Q8_0")
"""The types of the files that a training without a finish is measured on."""
DEFAULTS = "defaults: so8 + keep"

_CLOSED = {"alpha_start": -30.0, "alpha_target": -30.0}
"""A gate of 1e-13: no soul."""
_OFF = {"keep_weight": 0.0}
_BARE = {"counter_scale": False}
_RANDOM = {"rotation_init": "random"}
_DENSE = {"rotation": "dense"}
_ALL_LINEAR = {"lora_targets": ("all-linear",)}
_TIMES = (1, 2, 3, 4)
"""How much more kept text weighs in a finish."""


def _gate(value: float) -> dict[str, float]:
    """The α at which the gate ends at `value`."""
    return {"alpha_target": math.log(value / (1 - value))}


def _finish(quant: str, *others: str, steps: int = 100, **settings: float) -> Cell:
    """A training that ends with a finish, and is measured as this type and others."""
    return Cell({"finish_steps": str(steps), **settings}, quant, (quant, *others))


_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "LoRA alone": {**_CLOSED, **_OFF},
    "LoRA + keep": _CLOSED,
    DEFAULTS: {},
    "dense + keep": _DENSE,
    "preset original": {**_DENSE, **_RANDOM, **_BARE, **_OFF},
    # one thing at a time, without keep
    "so8": _OFF,
    "so8 random": {**_RANDOM, **_OFF},
    "so8 random, bare": {**_RANDOM, **_BARE, **_OFF},
    "so8 bare": {**_BARE, **_OFF},
    "scale only": {**_BARE, **_OFF, "soul_learning_rate": 1e-12},
    "dense": {**_DENSE, **_OFF},
    "dense bare": {**_DENSE, **_BARE, **_OFF},
    "dense random": {**_DENSE, **_RANDOM, **_OFF},
    # the gate and its schedule, with keep
    "dense + keep, g ends 0.1": {**_DENSE, **_gate(0.1)},
    "dense + keep, g ends 0.3": {**_DENSE, **_gate(0.3)},
    "dense + keep, g ends 0.5": {**_DENSE, **_gate(0.5)},
    "dense + keep, alpha learned": {**_DENSE, "alpha": "learned", "alpha_start": 0.0},
    # how many directions a block mixes
    "so64 + keep": {"rotation": "so64"},
    "so192 + keep": {"rotation": "so192"},
    "so8 + keep, soul rate x 10": {"soul_learning_rate": 2e-3},
    "dense + keep, soul rate x 3": {**_DENSE, "soul_learning_rate": 6e-4},
    "dense + keep, soul rate / 3": {**_DENSE, "soul_learning_rate": 2e-4 / 3},
    # how much is kept
    "dense + keep, every 1": {**_DENSE, "keep_every": 1},
    "dense + keep, every 2": {**_DENSE, "keep_every": 2},
    "dense + keep, every 8": {**_DENSE, "keep_every": 8},
    "dense + keep, weight 0.3": {**_DENSE, "keep_weight": 0.3},
    "dense + keep, weight 2": {**_DENSE, "keep_weight": 2.0},
    "dense + keep, weight 3": {**_DENSE, "keep_weight": 3.0},
    "so8 + keep, every 2": {"keep_every": 2},
    "so8 + keep, every 2, weight 2": {"keep_every": 2, "keep_weight": 2.0},
    "so8 + keep, every 8": {"keep_every": 8},
    "so8 + keep, 768 windows": {"keep_windows": 768},
    "so8 + keep, weight 0.3": {"keep_weight": 0.3},
    "so8 + keep, weight 1.5": {"keep_weight": 1.5},
    "so8 + keep, weight 4": {"keep_weight": 4.0},
    # controls of the adapter's size
    "LoRA r 32 + keep": {**_CLOSED, "lora_r": 32, "lora_alpha": 64.0},
    "LoRA r 64 + keep": {**_CLOSED, "lora_r": 64, "lora_alpha": 128.0},
    "all-linear LoRA": {**_CLOSED, **_OFF, **_ALL_LINEAR},
    "all-linear LoRA + keep": {**_CLOSED, **_ALL_LINEAR},
    "all-linear LoRA + keep, weight 2": {**_CLOSED, **_ALL_LINEAR, "keep_weight": 2.0},
    "all-linear LoRA + keep, weight 3": {**_CLOSED, **_ALL_LINEAR, "keep_weight": 3.0},
    "all-linear LoRA + keep, weight 4": {**_CLOSED, **_ALL_LINEAR, "keep_weight": 4.0},
    "all-linear + dense + keep": {**_DENSE, **_ALL_LINEAR},
    # the base as it is trained on a small card
    "NF4: LoRA + keep": {**_CLOSED, "load_in": "4bit"},
    "NF4: so8 + keep": {"load_in": "4bit"},
    "NF4: dense + keep": {**_DENSE, "load_in": "4bit"},
}

CELLS: Mapping[str, Cell] = {
    **{name: Cell(settings) for name, settings in _SETTINGS.items()},
    DEFAULTS: Cell({}, shipped=QUANTS),
    "so8 + keep, weight 2": Cell({"keep_weight": 2.0}, shipped=QUANTS[:-1]),
    "so8 + keep, weight 3": Cell({"keep_weight": 3.0}, shipped=QUANTS[:-1]),
    # the last steps on the weights of the file; kept text weighs in them as before them, or more
    **{
        f"finish on {quant}, keep x {times}": _finish(quant, finish_keep=times)
        for quant in QUANTS[:-1]
        for times in _TIMES
    },
    **{f"weight 2, finish on {quant}": _finish(quant, finish_keep=1, keep_weight=2.0) for quant in QUANTS[:-1]},
    # controls: of another type, shorter, all steps
    "finish on Q8_0": _finish("Q8_0", "Q4_0", "Q2_K", finish_keep=1),
    "50 steps on Q4_0": _finish("Q4_0", steps=50),
    "all steps on Q4_0": _finish("Q4_0", steps=250),
    "LoRA alone, finish on Q4_0": Cell({**_CLOSED, **_OFF, "finish_steps": "100"}, "Q4_0", ("Q4_0",)),
}
