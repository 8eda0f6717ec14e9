"""The finish: the last steps of a training, which compute with the weights of the quantized file that will ship.

Before it, the base is in NF4. From its first step on, every weight matrix is what llama.cpp's quantizer makes of the
merged one (`merging.shipped_weights`), so adapter and soul learn to make good what rounding costs. As the training
ends, the model in memory is the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aegis import progress
from aegis.background import Background
from aegis.merging.file_blocks import FileBlocks
from aegis.merging.shipped_weights import FileRecipe, ShippedWeights, untouched_blocks
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.model.base_states import release
from aegis.model.empty_model import empty_model
from aegis.model.load import compute_dtype
from aegis.model.lora_targets import adapted_weights, resolve_targets
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

    def make_blocks(self, lora_targets: Sequence[str]) -> Background[None]:
        """Begin to make in the background the blocks of the matrices that have no adapter.

        Args:
            lora_targets: the configured targets.
        """
        model = empty_model(self.base.folder)
        adapted = adapted_weights(model, resolve_targets(model, lora_targets))
        wanted = untouched_blocks(model, self.base, self.recipe, adapted)
        return FileBlocks(self.base, self.recipe.merged).make(wanted)


class FinishStart:
    """Begins a training's finish when it is due.

    Args:
        finish: None for a training without one.
        blocks: what `Finish.make_blocks` returned; None if they are made when they are needed.
    """

    def __init__(self, finish: Finish | None, blocks: Background[None] | None = None) -> None:
        self._finish = finish
        self._blocks = blocks

    def begin(self, state: TrainState, step: int) -> ShippedWeights | None:
        """Replace the model's weights by those of the file, if that is due before `step` or was in an earlier run.

        Returns:
            None if it is not due, or was done.
        """
        finish = self._finish
        if finish is None or state.shipped is not None or step < finish.start:
            return None
        progress.say(phrase("finish.begins", step=step, quant=finish.recipe.quant))
        device = state.soul.skew.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the last step may still read the weights that are replaced
        with progress.task(phrase("finish.rounding", quant=finish.recipe.quant)):
            if self._blocks is not None:
                self._blocks.result()
            weights = ShippedWeights(state.model, state.soul, finish.base, finish.recipe, compute_dtype(device))
        release(device)
        return weights
