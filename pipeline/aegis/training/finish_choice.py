"""Decides whether a training has a finish, and for which file; what was decided when it was started stays so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from aegis import progress
from aegis.config.settings import AUTO, TrainConfig
from aegis.errors import EnvironmentFault
from aegis.llama_cpp import find_converter
from aegis.messages import bilingual, phrase
from aegis.model.base import Base
from aegis.runs.facts import TrainFacts
from aegis.training.distributed.group import ProcessGroup
from aegis.training.execution import allocator
from aegis.training.finish import Finish, may_finish
from aegis.training.planning.finish_room import has_room
from aegis.training.planning.machine import Gpu
from aegis.verification.run_precheck import Later, asked_quants


@dataclass(frozen=True)
class FinishChoice:
    """What is decided about a finish before the base is read.

    Attributes:
        quant: the type of the file that the training is for: the first one that was asked when it was started.
        wanted: whether a finish is to be planned.
        is_new: whether the GPU's memory may still decide against it.
    """

    later: Later
    quant: str
    wanted: bool
    is_new: bool

    @classmethod
    def of(cls, config: TrainConfig, later: Later, before: TrainFacts | None) -> FinishChoice:
        """Choose by the settings; or, for a training that was started before, as its facts have it."""
        asked = asked_quants(later.export)[0]
        quant = asked if before is None else before.quant or asked
        if quant != asked:
            progress.say(phrase("finish.started_for", started=quant, asked=asked))
        automatic = config.finish_steps == AUTO
        if automatic and before is not None:
            return cls(later, quant, before.finish is not None, is_new=False)
        return cls(later, quant, may_finish(config, quant), is_new=automatic)

    def bring_converter(self) -> None:
        """Fetch llama.cpp's converter, which says which types the file's weights get; only `train` can do without.

        Raises:
            EnvironmentFault: it cannot be fetched, and the finish was asked for, or an export follows.
        """
        if not self.wanted:
            return
        try:
            find_converter(self.later.export.llama_cpp_dir)
        except EnvironmentFault:
            if not self.is_new or self.later.is_certain:
                raise

    def plan(self, config: TrainConfig, base: Base, vocabulary: Path | None) -> Finish | None:
        """Plan the finish: see `Finish.plan`."""
        return Finish.plan(config, base, self.later, vocabulary, self.quant) if self.wanted else None

    def settled(
        self, finish: Finish | None, config: TrainConfig, device: torch.device, group: ProcessGroup
    ) -> Finish | None:
        """Return the planned finish, if the GPU has room for it or it was asked for; process 0 decides for all."""
        if finish is None:
            return None

        def fits() -> bool:
            if device.type != "cuda" or not self.is_new:
                return True
            with allocator.capped(device, config.gpu_memory_gib):
                gpu = Gpu.measure(device)
            return types_with_room(finish, config, "cuda", gpu.capability, gpu.free_bytes) is not None

        if not group.broadcast(fits):
            progress.say(phrase("finish.none", obstacle=bilingual("finish.no_room").shown))
            return None
        progress.say(phrase("finish.planned", steps=finish.steps, quant=self.quant))
        return finish


def types_with_room(
    finish: Finish | None, config: TrainConfig, kind: str, capability: tuple[int, int] | None, free_bytes: int | None
) -> Mapping[str, str] | None:
    """Return the types of the weights in a planned finish; None if there is none, or no room for one by itself.

    Args:
        kind: "cuda" or "cpu".
        capability, free_bytes: see `has_room`.
    """
    if finish is None:
        return None
    types = finish.recipe.types
    is_certain = config.finish_steps != AUTO or kind == "cpu"
    return types if is_certain or has_room(config, finish.base.folder, capability, free_bytes, types) else None
