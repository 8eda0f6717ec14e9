"""Computes the losses that training minimises: cross-entropy on the data, and KL(base ‖ trained) on kept text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegis.data.packing import IGNORED
from aegis.model.soul_hook import decoder_of
from aegis.training.batch import MicroBatch
from aegis.training.kernels.chunked_divergence import head_divergence
from aegis.training.kernels.chunked_loss import head_loss
from aegis.training.state import TrainState


class _Chosen(torch.autograd.Function):
    """hidden[rows], where repeated rows have a zero gradient: backward copies rows, and indexing would sort them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = hidden.shape[0]
        return hidden.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        gradient = outer[0].new_zeros(ctx.count, outer[0].shape[1])
        return gradient.index_copy_(0, rows, outer[0]), None


def summed_loss(state: TrainState, batch: MicroBatch) -> Tensor:
    """Return the summed cross-entropy of a batch's targets in nats, a differentiable float32 scalar."""
    head = state.model.get_output_embeddings()
    return head_loss(
        _chosen_hidden(state, batch),
        head.weight,
        getattr(head, "bias", None),
        batch.targets,
        compiled=state.options.compiled,
    )


def summed_divergence(state: TrainState, batch: MicroBatch) -> Tensor:
    """Return KL(base ‖ trained) summed over a kept batch's rows in nats, a differentiable float32 scalar."""
    assert batch.base_hidden is not None, "kept text comes with the base's states"
    head = state.model.get_output_embeddings()
    return head_divergence(
        _chosen_hidden(state, batch),
        batch.base_hidden,
        head.weight,
        getattr(head, "bias", None),
        batch.targets != IGNORED,
        base_head=state.base_head,
        compiled=state.options.compiled,
    )


def _chosen_hidden(state: TrainState, batch: MicroBatch) -> Tensor:
    """Return the soul's hidden states at a batch's rows, (n, hidden_size)."""
    # no attention mask: the edges separate the documents, or transformers does by their positions
    edges = {} if batch.edges is None else {"cu_seq_lens_q": batch.edges, "max_length_q": batch.longest}
    start = {"input_ids": batch.input_ids} if batch.embedded is None else {"inputs_embeds": batch.embedded}
    hidden = decoder_of(state.model)(
        **start, position_ids=batch.position_ids, use_cache=False, **edges
    ).last_hidden_state
    chosen: Tensor = _Chosen.apply(hidden.flatten(0, 1), batch.rows)  # type: ignore[no-untyped-call]
    return chosen
