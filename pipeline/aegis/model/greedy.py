"""Lets a model in memory continue several prompts at once, each with its most likely tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from aegis.model.cuda_graphs import own_stream
from aegis.model.decoder import Decoder, Embed


@torch.no_grad()
def continue_greedily(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Collection[int],
    *,
    embed: Embed | None = None,
    record: bool = False,
    expired: Callable[[], bool] = lambda: False,
) -> list[tuple[list[int], bool]]:
    """Return each prompt's next tokens without the one that ends them, and whether there was such a token.

    No random number is drawn.

    Args:
        model: a …ForCausalLM on its device, with its adapter and soul if it has them.
        prompts: token ids, none of them empty.
        ends: tokens that end an answer.
        embed, record: as in `Decoder`.
        expired: asked after every token; if true, the answers end there.
    """
    device = model.get_output_embeddings().weight.device
    longest, pad = max(map(len, prompts)), min(ends, default=0)
    following = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts])
    padding = torch.tensor([longest - len(ids) for ids in prompts], device=device)
    found: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    with own_stream(device):
        decoder = Decoder(model, len(prompts), longest + max_tokens, padding=padding, embed=embed, record=record)
        for _ in range(max_tokens):
            following = decoder(following).argmax(-1, keepdim=True).cpu()
            for row, (token,) in enumerate(following.tolist()):
                if token in ends:
                    open_rows.discard(row)
                elif row in open_rows:
                    found[row].append(token)
            if expired() or not open_rows:
                break
    return [(ids, row not in open_rows) for row, ids in enumerate(found)]
