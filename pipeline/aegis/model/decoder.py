"""Runs a model token after token, for several texts at once: a static cache, and on a GPU one CUDA graph per token.

Kernel by kernel, a token takes as long as Python needs to launch a thousand kernels, whatever the GPU could do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from aegis.model.cuda_graphs import GraphRecorder

Embed = Callable[[Tensor], Tensor]


class Decoder:
    """Gives the logits after the last token of some texts, which grow by one token per call after the first.

    Args:
        model: a …ForCausalLM on its device, with its adapter and soul if it has them.
        rows: number of texts.
        length: maximum tokens of a text, its padding counted.
        padding: tokens of padding on the left per text, int64 on the device; None if there are none.
        embed: the input embeddings if they are in the host's memory.
        record: record the step as a CUDA graph where that is possible. It must run on a stream of its own then
            (`own_stream`), and the model's layers must be plain ones.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        length: int,
        *,
        padding: Tensor | None = None,
        embed: Embed | None = None,
        record: bool = False,
    ) -> None:
        from aegis.model.growing_cache import GrowingCache

        self._model, self._embed = model, embed
        self._device = model.get_output_embeddings().weight.device
        self._cache = GrowingCache(model.config, length)
        self._filled = 0
        self._mask: Tensor | None = None
        self._next = torch.zeros(rows, 1, dtype=torch.int64, device=self._device)
        if padding is not None:
            places = torch.arange(length, device=self._device)
            self._mask = (places >= padding.unsqueeze(1)).to(torch.int64)
            self._next -= padding.unsqueeze(1)
        self._given = torch.zeros(rows, 1, dtype=torch.int64, device=self._device)
        self._logits = torch.empty(0)
        self._recorder: GraphRecorder | None = None
        self._warmed_up = False
        self._replay: Callable[[], None] | None = None
        self._records = record and self._device.type == "cuda" and embed is None and self._can_repeat(length)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Take the texts' next tokens, (rows, tokens) int64, and return the logits after the last, (rows, vocabulary).

        The next call may overwrite them. Only the first call may have several tokens per text.
        """
        is_first = not self._filled
        self._filled += tokens.shape[1]
        if self._cache.show(self._filled):
            self._replay, self._warmed_up = None, False
        if is_first:
            return self._first(tokens)
        if self._records and self._replay is None and self._warmed_up:
            self._record()
        if self._replay is None:
            self._step(tokens)
            self._warmed_up = True
        else:
            self._given.copy_(tokens)
            self._replay()
        return self._logits

    def _first(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        positions = (self._next + torch.arange(count, device=self._device)).clamp(min=0)
        self._next += count
        return self._forward(tokens, positions)

    def _step(self, tokens: Tensor) -> None:
        self._logits = self._forward(tokens, self._next)
        self._next.add_(1)

    def _record(self) -> None:
        self._recorder = self._recorder or GraphRecorder()
        try:
            with _fixed_frequencies(self._model):
                self._replay = self._recorder.record(lambda: self._step(self._given))
        except RuntimeError:  # a kernel of this family waits for the GPU
            self._records = False

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        if self._embed is None:
            given = {"input_ids": tokens.to(self._device)}
        else:
            given = {"inputs_embeds": self._embed(tokens).to(self._device)}
        found = self._model(
            **given,
            attention_mask=None if self._mask is None else self._mask[:, : self._cache.shown],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = found.logits[:, -1]
        return logits

    def _can_repeat(self, length: int) -> bool:
        """Whether each step launches the same kernels: no window slides, and no rotary frequency changes on the way."""
        rope = getattr(self._model.config.get_text_config(), "rope_parameters", None) or {}
        original = rope.get("original_max_position_embeddings") or length
        return not any(self._cache.is_sliding) and length <= original


@contextmanager
def _fixed_frequencies(model: nn.Module) -> Iterator[None]:
    """Keep the rotary frequencies as they are: older versions of transformers ask the host about them at each step."""
    rotary = [module for module in model.modules() if hasattr(module, "inv_freq") and hasattr(module, "rope_type")]
    for module in rotary:
        module.forward = MethodType(inspect.unwrap(type(module).forward), module)
    try:
        yield
    finally:
        for module in rotary:
            del module.forward
