"""Decides whether a training has a finish, how long it is, and for which file; a resumed training keeps its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from aegis import progress
from aegis.config.train_settings import AUTO, OFF, TrainConfig
from aegis.errors import EnvironmentFault, UnsupportedModelError, UsageError
from aegis.llama_cpp import find_converter, planned_types
from aegis.merging.merged_weights import DTYPES, counter_scaled, merged_shapes
from aegis.merging.shipped_weights import FileRecipe
from aegis.messages import Bilingual, bilingual, phrase
from aegis.model.base import Base
from aegis.runs.facts import TrainFacts
from aegis.training.distributed.group import ProcessGroup
from aegis.training.execution import allocator
from aegis.training.finish import Finish
from aegis.training.planning.finish_room import has_room
from aegis.training.planning.machine import Gpu
from aegis.verification.run_precheck import Later, asked_quants

_SHARE = 2 / 5
"""The part of the steps that "auto" gives to the finish: what the study measured."""
_MIN_STEPS = 100
"""The shortest training that "auto" gives a finish: a shorter one has not learned what the finish has to keep."""
_PAYS = ("Q2_K", "Q3_K", "Q4_", "IQ4_")
"""The types, by the beginnings of their names, that lose enough by rounding for a finish to pay."""


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
        return cls(later, quant, _may_finish(config, quant), is_new=automatic)

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
        """Plan the finish: see `plan_finish`."""
        return plan_finish(config, base, self.later, vocabulary, self.quant) if self.wanted else None

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


def plan_finish(
    config: TrainConfig, base: Base, later: Later, vocabulary: Path | None, quant: str | None = None
) -> Finish | None:
    """Plan the finish that the settings ask for; None if there is none.

    Args:
        config: with the number of steps that its epochs take.
        vocabulary: see `llama_cpp.planned_types`; None if the converter is not on this machine yet.
        quant: the type of the file; the first one that is asked of export if None.

    Raises:
        UsageError: the settings ask for a finish that is not possible with others of them.
    """
    quant = quant or asked_quants(later.export)[0]
    if not _may_finish(config, quant):
        return None
    automatic = config.finish_steps == AUTO
    steps = round(config.max_steps * _SHARE) if automatic else int(config.finish_steps)
    obstacle = _obstacle(config, later, steps, vocabulary)
    types: dict[str, str] = {}
    if obstacle is None:
        assert vocabulary is not None
        try:
            shapes, head_quant = merged_shapes(base), later.export.head_quant
            types = planned_types(vocabulary, shapes, quant, output_tensor_type=head_quant)
        except UnsupportedModelError as error:
            obstacle = Bilingual.same(error.why)
    if obstacle is None:
        recipe = FileRecipe(quant, types, DTYPES[later.merge.dtype], counter_scaled(base, config.counter_scale))
        return Finish(base, config.max_steps - steps, steps, recipe)
    if not automatic:
        raise UsageError("finish.impossible", steps=steps, quant=quant, obstacle=obstacle)
    progress.say(phrase("finish.none", obstacle=obstacle.shown))
    return None


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


def _may_finish(config: TrainConfig, quant: str) -> bool:
    """Whether the settings ask for a finish, or leave it to a rule that gives this training one for this type."""
    if config.finish_steps == AUTO:
        return quant.startswith(_PAYS) and config.max_steps >= _MIN_STEPS
    return config.finish_steps != OFF


def _obstacle(config: TrainConfig, later: Later, steps: int, vocabulary: Path | None) -> Bilingual | None:
    if steps > config.max_steps:
        return bilingual("finish.too_long", max_steps=config.max_steps)
    if config.shard_base:
        return bilingual("finish.sharded")
    if later.export.imatrix is not None:
        return bilingual("finish.imatrix")
    if later.merge.base_weights == "dequantized":
        return bilingual("finish.dequantized")
    return bilingual("finish.no_converter") if vocabulary is None else None
