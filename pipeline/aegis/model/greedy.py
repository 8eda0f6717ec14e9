"""Lets a model in memory continue several prompts at once, each with its most likely tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def continue_greedily(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Collection[int],
    *,
    embed: Callable[[Tensor], Tensor] | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> list[tuple[list[int], bool]]:
    """Return each prompt's next tokens without the one that ends them, and whether there was such a token.

    No random number is drawn.

    Args:
        model: a …ForCausalLM on its device, with its adapter and soul if it has them.
        prompts: token ids, none of them empty.
        ends: tokens that end an answer.
        embed: the input embeddings if they are in the host's memory.
        expired: asked after every token; if true, the answers end there.
    """
    from transformers import DynamicCache

    device = model.get_output_embeddings().weight.device
    longest, padding = max(map(len, prompts)), min(ends, default=0)
    following = torch.tensor([[padding] * (longest - len(ids)) + list(ids) for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    found: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for _ in range(max_tokens):
        given = {"input_ids": following.to(device)} if embed is None else {"inputs_embeds": embed(following).to(device)}
        given |= {"attention_mask": mask, "position_ids": positions}
        logits = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        following = logits.argmax(-1, keepdim=True).cpu()
        for row, (token,) in enumerate(following.tolist()):
            if token in ends:
                open_rows.discard(row)
            elif row in open_rows:
                found[row].append(token)
        if expired() or not open_rows:
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [(ids, row not in open_rows) for row, ids in enumerate(found)]
