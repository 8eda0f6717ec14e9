"""Writes, reads and removes checkpoints; training resumes from one bit for bit, or not at all.

step_000100/
    adapter_config.json, adapter_model.safetensors    the adapter, as peft reads it
    soul.safetensors                                  the soul, as merge reads it
    resume.safetensors                                the soul's state, the optimizer's moments, and for a finish on a
                                                      GPU what its weights were last rounded for
    compiler_choices.json                             of a compiled training on a GPU: its choices among kernels
    manifest.json                                     settings and input hashes, and every file's hash

A checkpoint has no state of random generators or of the data order: both are pure functions of the seed and the step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis import progress
from aegis.errors import IntegrityError, UsageError
from aegis.hub.client import CARD
from aegis.messages import phrase
from aegis.model.adapter import WEIGHTS
from aegis.runs.manifest import Manifest, verify_directory
from aegis.runs.publish import discard, publishing
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import SoulRecord, save_soul
from aegis.soul.module import Soul
from aegis.training.execution.compiler_choices import load_choices, save_choices
from aegis.training.state import TrainState

_RESUME = "resume.safetensors"
_NAME = re.compile(r"step_(\d{6,})")


def write_trained(directory: Path, model: Any, soul: Soul, step: int, base_hash: str) -> None:
    """Write adapter and soul, which later stages read, into an existing directory."""
    # save_embedding_layers="auto" would ask the Hub whether the vocabulary was resized, and it never is
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / CARD).unlink(missing_ok=True)  # peft's empty model card
    with torch.no_grad():
        rotation = soul.rotation().detach().cpu().clone()
    save_soul(directory / SOUL_FILE, SoulRecord(rotation, soul.alpha.item(), step, base_hash, soul.counter_scale))


def save(
    folder: Path, state: TrainState, step: int, manifest: Manifest, *, keep: int, spare: int | None = None
) -> Path:
    """Publish checkpoint `step`, then remove the oldest checkpoints beyond `keep` but `spare`; return its directory."""
    final = at(folder, step)
    with publishing(final, manifest, overwrite=True) as staging:
        write_trained(staging.path, state.model, state.soul, step, manifest.inputs["base"])
        save_file(_resume_tensors(state), staging.path / _RESUME)
        if state.options.compiled:
            save_choices(staging.path)
    prune(folder, step, keep, spare=spare)
    return final


def at(folder: Path, step: int) -> Path:
    """Return the directory of the checkpoint after `step` steps."""
    return folder / f"step_{step:06d}"


def prune(folder: Path, step: int, keep: int, *, spare: int | None = None) -> None:
    """Remove the oldest checkpoints beyond `keep`, counted from `step` down, but not that of step `spare`.

    A checkpoint with a later step is damaged and was skipped: it must not displace the one that was just saved.
    """
    for old in [found for found in list_steps(folder) if step_of(found) <= step][keep:]:
        if step_of(old) == spare:
            continue
        try:
            discard(old)
        # another program may have it open on Windows, or a user's file is in it: this does not stop training
        except (OSError, UsageError) as error:
            progress.warn(phrase("checkpoint.not_removed", error=error))


def list_steps(folder: Path) -> list[Path]:
    """List the checkpoints, latest step first; by name, since clocks can go backwards."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_whole(folder: Path) -> tuple[Path, Manifest] | None:
    """Find the newest undamaged checkpoint; warn about each damaged one that is skipped.

    Returns:
        The checkpoint and its manifest, or None if there is no checkpoint.

    Raises:
        IntegrityError: there are checkpoints, and all of them are damaged.
    """
    checkpoints = list_steps(folder)
    for checkpoint in checkpoints:
        try:
            return checkpoint, verify_directory(checkpoint)
        except IntegrityError as error:
            progress.warn(phrase("checkpoint.passed_over", error=error))
    if checkpoints:
        raise IntegrityError("checkpoint.all_damaged", folder=folder)
    return None


def load(checkpoint: Path, state: TrainState) -> None:
    """Load a checkpoint into `state`, bit for bit.

    Raises:
        IntegrityError: its tensors are not exactly those that this run trains.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    try:
        adapter = load_file(checkpoint / WEIGHTS)
        saved = load_file(checkpoint / _RESUME)
    except (SafetensorError, OSError) as error:
        raise IntegrityError("checkpoint.unreadable", checkpoint=checkpoint, error=str(error)) from None
    _refuse_differences(checkpoint, get_peft_model_state_dict(state.model, save_embedding_layers=False), adapter)
    _refuse_differences(checkpoint, _expected(state, saved), saved)
    set_peft_model_state_dict(state.model, adapter)
    if state.options.compiled:
        load_choices(checkpoint)
    with torch.no_grad():
        for name, tensor in _soul_tensors(state.soul).items():
            tensor.copy_(saved[name])
    on_device = state.optimizer.defaults["fused"] or state.optimizer.defaults["capturable"]
    for name, parameter in state.parameters().items():
        if f"steps.{name}" in saved:
            steps = saved[f"steps.{name}"].clone()
            state.optimizer.state[parameter] = {
                "step": steps.to(parameter.device) if on_device else steps,
                "exp_avg": saved[f"moment1.{name}"].to(parameter.device),
                "exp_avg_sq": saved[f"moment2.{name}"].to(parameter.device),
            }
    device = state.soul.skew.device
    rounded = {name: saved[f"rounded.{name}"] for name in state.trained_tensors() if f"rounded.{name}" in saved}
    state.rounded_for = {name: tensor.to(device) for name, tensor in rounded.items()} or None
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(
            {
                **state.scaler.state_dict(),
                "scale": saved["scaler"][0].item(),
                "_growth_tracker": int(saved["scaler"][1]),
            }
        )


def _expected(state: TrainState, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the resume tensors that this run would write; only their names and shapes count."""
    wanted = _soul_tensors(state.soul)
    for name, parameter in state.parameters().items():
        # a parameter without a step yet (alpha before it is learned) has no moments
        if f"steps.{name}" in saved:
            wanted |= {f"steps.{name}": torch.tensor(0), f"moment1.{name}": parameter, f"moment2.{name}": parameter}
    if any(name.startswith("rounded.") for name in saved):
        wanted |= {f"rounded.{name}": tensor for name, tensor in state.trained_tensors().items()}
    if state.scaler.is_enabled():
        wanted["scaler"] = torch.zeros(2)
    return wanted


def _refuse_differences(checkpoint: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    odd = {(n, t.shape) for n, t in wanted.items()} ^ {(n, t.shape) for n, t in found.items()}
    if odd:
        names = sorted({name for name, _ in odd})
        raise IntegrityError("checkpoint.other_set_up", checkpoint=checkpoint, names=", ".join(names[:5]))


def _soul_tensors(soul: Soul) -> dict[str, Tensor]:
    if soul.kind == "dense":  # between steps the skew of a dense rotation is zero
        return {"soul.rotation": soul.start, "soul.alpha": soul.alpha}
    return {"soul.skew": soul.skew, "soul.alpha": soul.alpha, "soul.start": soul.start}


def _resume_tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = _soul_tensors(state.soul)
    for name, parameter in state.parameters().items():
        moments = state.optimizer.state.get(parameter)
        if moments:
            tensors[f"steps.{name}"] = moments["step"]
            tensors[f"moment1.{name}"] = moments["exp_avg"]
            tensors[f"moment2.{name}"] = moments["exp_avg_sq"]
    tensors |= {f"rounded.{name}": tensor for name, tensor in (state.rounded_for or {}).items()}
    if state.scaler.is_enabled():
        found = state.scaler.state_dict()
        tensors["scaler"] = torch.tensor([found["scale"], found["_growth_tracker"]], dtype=torch.float64)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
