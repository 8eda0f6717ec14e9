"""The finish: the last steps of a training, which compute with the weights of the quantized file that will ship.

Before it, the base is in NF4. From its first step on, every weight matrix is what llama.cpp's quantizer makes of the
merged one (`merging.shipped_weights`), so adapter and soul learn to make good what rounding costs. As the training
ends, the model in memory is the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from aegis import progress
from aegis.config.settings import AUTO, OFF, TrainConfig
from aegis.errors import UnsupportedModelError, UsageError
from aegis.llama_cpp import planned_types
from aegis.merging.merged_weights import DTYPES, counter_scaled, merged_shapes
from aegis.merging.shipped_weights import FileRecipe, ShippedWeights
from aegis.messages import Bilingual, bilingual, phrase
from aegis.model.base import Base
from aegis.model.base_states import release
from aegis.model.load import compute_dtype
from aegis.runs.facts import FinishFacts
from aegis.runs.manifest import digest
from aegis.training.state import TrainState
from aegis.verification.run_precheck import Later, asked_quants

_SHARE = 2 / 5
"""The part of the steps that "auto" gives to the finish: what the study measured."""
_MIN_STEPS = 100
"""The shortest training that "auto" gives a finish: a shorter one has not learned what the finish has to keep."""
_PAYS = ("Q2_K", "Q3_K", "Q4_", "IQ4_")
"""The types, by the beginnings of their names, that lose enough by rounding for a finish to pay."""


@dataclass(frozen=True)
class Finish:
    """A planned finish.

    Attributes:
        start: its first step.
        steps: its number of steps.
        recipe: how merge and export make the file.
    """

    base: Base
    start: int
    steps: int
    recipe: FileRecipe

    @classmethod
    def plan(
        cls, config: TrainConfig, base: Base, later: Later, vocabulary: Path | None, quant: str | None = None
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
        if not may_finish(config, quant):
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
            return cls(base, config.max_steps - steps, steps, recipe)
        if not automatic:
            raise UsageError("finish.impossible", steps=steps, quant=quant, obstacle=obstacle)
        progress.say(phrase("finish.none", obstacle=obstacle.shown))
        return None

    @property
    def facts(self) -> FinishFacts:
        return FinishFacts(steps=self.steps, quant=self.recipe.quant, types=dict(self.recipe.types))

    @property
    def digest(self) -> str:
        """The sha256 of everything about the finish that changes the result."""
        recipe = self.recipe
        return digest([self.facts.model_dump(), str(recipe.merged), recipe.scaled])

    def begin(self, state: TrainState) -> ShippedWeights:
        """Replace the model's weights by those of the file."""
        device = state.soul.skew.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the last step may still read the weights that are replaced
        with progress.task(phrase("finish.rounding", quant=self.recipe.quant)):
            weights = ShippedWeights(state.model, state.soul, self.base, self.recipe, compute_dtype(device))
        release(device)
        return weights


def may_finish(config: TrainConfig, quant: str) -> bool:
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
