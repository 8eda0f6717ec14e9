"""The finish: the last steps of a training, which compute with the weights of the quantized file that will ship.

Before it, the base is in NF4. From its first step on, every weight matrix is what llama.cpp's quantizer makes of the
merged one (`merging.shipped_weights`), so adapter and soul learn to make good what rounding costs. As the training
ends, the model in memory is the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aegis import progress
from aegis.background import Background
from aegis.merging.file_blocks import FileBlocks
from aegis.merging.shipped_weights import FileRecipe, ShippedWeights, untouched_blocks
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.model.base_states import release
from aegis.model.load import compute_dtype
from aegis.runs.facts import FinishFacts
from aegis.runs.manifest import digest
from aegis.training.state import TrainState


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

    @property
    def facts(self) -> FinishFacts:
        return FinishFacts(steps=self.steps, quant=self.recipe.quant, types=dict(self.recipe.types))

    @property
    def digest(self) -> str:
        """The sha256 of everything about the finish that changes the result."""
        recipe = self.recipe
        return digest([self.facts.model_dump(), str(recipe.merged), recipe.scaled])

    def prepare(self, state: TrainState, step: int) -> Background[None] | None:
        """Make in the background of the steps from `step` on what `begin` needs; None if there is nothing to make."""
        wanted = untouched_blocks(state.model, self.base, self.recipe) if step < self.start else []
        if not wanted or state.soul.skew.device.index:
            return None  # the first process of a machine makes them for all
        return FileBlocks(self.base, self.recipe.merged).make(wanted)

    def begin(self, state: TrainState, preparing: Background[None] | None = None) -> ShippedWeights:
        """Replace the model's weights by those of the file, once what `prepare` began is there."""
        device = state.soul.skew.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the last step may still read the weights that are replaced
        with progress.task(phrase("finish.rounding", quant=self.recipe.quant)):
            if preparing is not None:
                preparing.result()
            weights = ShippedWeights(state.model, state.soul, self.base, self.recipe, compute_dtype(device))
        release(device)
        return weights
