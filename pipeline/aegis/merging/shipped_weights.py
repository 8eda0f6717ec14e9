"""Puts a quantized file's weights into a live model, and refreshes them as adapter and soul change.

The quantizer rounds W + ΔW, a weight with its adapter, and W (I + gR), the folded LM head. A live model computes its
adapter and its soul beside the base's weights. So each weight is replaced by one that gives the file's together with
them:

    round(W + ΔW) − ΔW           for a weight with an adapter
    round(W (I + gR)) (I + gR)⁻¹  for the LM head
    round(W)                     for all other matrices

The forward pass is then the file's, and the gradients reach adapter and soul as if nothing were rounded (a
straight-through estimator: Bengio et al. 2013, arXiv:1308.3432). Rounding works row by row, so rows may be permuted by
the conversion without a difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aegis.background import two_at_a_time
from aegis.merging.file_blocks import FileBlocks, converted
from aegis.merging.merged_weights import head_entry
from aegis.model.base import Base
from aegis.model.k_quant_linear import BlockLinear
from aegis.model.k_quant_weights import BLOCK, BLOCK_BYTES, dequantize_blocks
from aegis.model.rounding import rounded
from aegis.model.shards import HEAD, TensorEntry
from aegis.soul.fold import fold_head, unfold_head
from aegis.soul.module import Soul

_ADAPTER = "default"
_SLAB_VALUES, _SLAB_ROWS = 1 << 24, 16
"""Values that are rounded at the same time: 64 MB in float32, on a GPU; and what the number of their rows is a multiple
of: Triton compiles a kernel once more for a number that 16 does not divide."""


@dataclass(frozen=True)
class FileRecipe:
    """How merge and export make the file.

    Attributes:
        quant: the file's type, such as "Q4_K_M".
        types: the ggml type of each weight matrix, by its name in the merged folder.
        merged: the dtype of the merged folder.
        scaled: the module that takes the soul's counter-scale, as in `MergePlan`.
    """

    quant: str
    types: Mapping[str, str]
    merged: torch.dtype
    scaled: Literal["norm", "head", ""]

    def rounded(self, values: Tensor, name: str) -> Tensor:
        """Return rows of a merged weight as the file has them.

        Args:
            values: (rows, columns) float32.

        Returns:
            (rows, columns) float32.
        """
        return rounded(converted(values, self.merged), self.types[name])


@dataclass(frozen=True)
class _Adapted:
    """A weight with an adapter."""

    name: str
    source: Tensor
    layer: Any

    @property
    def target(self) -> Tensor:
        weight: Tensor = self.layer.base_layer.weight
        return weight.data

    def refresh(self, recipe: FileRecipe) -> None:
        layer = self.layer
        a, b, scale = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight, layer.scaling[_ADAPTER]
        # what the forward pass adds; training casts the matrices
        low_a, low_b = getattr(layer, "aegis_a", a).float(), getattr(layer, "aegis_b", b).float()
        for rows in _slabs(self.source):
            wide = self.source[rows].float().add_(torch.mm(b[rows], a).mul_(scale))
            values = recipe.rounded(wide, self.name)
            self.target[rows] = values.sub_(torch.mm(low_b[rows], low_a).mul_(scale))


class ShippedWeights:
    """The weights of a live model as they are in a quantized file.

    The model keeps its adapter and its soul. `refresh` follows a change of theirs; all other weights change once, here.

    Args:
        model: a peft model over `base`, in any precision; its linear layers are replaced.
        soul: the soul whose hook the model has.

    Attributes:
        base_head: the base's LM head, (vocab_size, hidden_size) in the model's dtype.
    """

    @torch.no_grad()
    def __init__(self, model: Any, soul: Soul, base: Base, recipe: FileRecipe, dtype: torch.dtype) -> None:
        self.recipe = recipe
        self._soul = soul
        self._file_blocks = FileBlocks(base, recipe.merged)
        inner = model.get_base_model()
        self._adapted: list[_Adapted] = []
        head = inner.get_output_embeddings()
        self._head_source = head_entry(base).read().to(head.weight.device)
        self.base_head = self._head_source.to(dtype)
        # a tied head shares the embeddings' memory, and the file has two tensors
        head.weight = nn.Parameter(torch.empty_like(self.base_head), requires_grad=False)
        self._head = head.weight
        entries = [base.shards.entries[name] for name in recipe.types if name != HEAD]
        # read ahead: the next one while this one is copied to the GPU
        sources = two_at_a_time(entry.read for entry in entries if hasattr(_module(inner, entry.name), "base_layer"))
        for entry in entries:
            self._place(inner, entry, dtype, sources)
        self.refresh()

    def _place(self, inner: Any, entry: TensorEntry, dtype: torch.dtype, sources: Iterator[Tensor]) -> None:
        """Replace a weight; `sources` yields those with an adapter, in their order."""
        path, module = entry.name.removesuffix(".weight"), _module(inner, entry.name)
        if hasattr(module, "base_layer"):
            plain = module.base_layer
            weight = torch.empty(entry.shape, dtype=dtype, device=plain.weight.device)
            module.base_layer = _linear(weight, plain.bias)
            self._adapted.append(_Adapted(entry.name, next(sources).to(weight.device), module))
        elif isinstance(module, nn.Embedding):
            module.weight = nn.Parameter(self._values(entry, dtype, module.weight.device), requires_grad=False)
        elif module.weight.is_cuda and _stays_in_blocks(module, self.recipe.types[entry.name]):
            inner.set_submodule(path, BlockLinear(*self._blocks(entry, module.weight.device), module.bias))
        else:
            inner.set_submodule(path, _linear(self._values(entry, dtype, module.weight.device), module.bias))

    def _values(self, entry: TensorEntry, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an untouched weight's values in the file."""
        out = torch.empty(entry.shape, dtype=dtype, device=device)
        for rows in _slabs(out):
            # on the CPU, where llama.cpp rounds by itself
            out[rows] = self.recipe.rounded(entry.read(rows.start, rows.stop).float(), entry.name).to(device)
        return out

    def _blocks(self, entry: TensorEntry, device: torch.device) -> tuple[Tensor, str]:
        """Return an untouched weight's blocks in the file, and their type."""
        kind = self.recipe.types[entry.name]
        return self._file_blocks.read(entry, kind).to(device), kind

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights with an adapter, and the head, for the current adapter and soul."""
        for weight in self._adapted:
            weight.refresh(self.recipe)
        rotation, gate = self._soul.rotation(), torch.sigmoid(self._soul.alpha)
        scale = 1 / (1 + gate) if self.recipe.scaled == "head" else torch.ones_like(gate)
        for rows in _slabs(self._head_source):
            folded = fold_head(self._head_source[rows], rotation, gate) * scale
            self._head.data[rows] = unfold_head(self.recipe.rounded(folded, HEAD), rotation, gate) / scale


@torch.no_grad()
def load_kernels(recipe: FileRecipe, device: torch.device, dtype: torch.dtype) -> None:
    """Compile the kernels that round and dequantize on a GPU, before a finish needs them."""
    for kind in set(recipe.types.values()):
        rounded(torch.zeros(_SLAB_ROWS, BLOCK, device=device), kind)
        if kind in BLOCK_BYTES:
            raw = torch.zeros(_SLAB_ROWS, BLOCK_BYTES[kind], dtype=torch.uint8, device=device)
            dequantize_blocks(raw, kind, dtype)


def untouched_blocks(
    model: nn.Module, base: Base, recipe: FileRecipe, adapted: Collection[str]
) -> list[tuple[TensorEntry, str]]:
    """Return the matrices that a finish on a GPU holds as the file's blocks, with their types.

    Args:
        model: the base's modules, without an adapter; they may be on the meta device.
        adapted: the names of the weights that get an adapter.
    """
    return [
        (base.shards.entries[name], kind)
        for name, kind in recipe.types.items()
        if name != HEAD and name not in adapted and _stays_in_blocks(_module(model, name), kind)
    ]


def _module(inner: nn.Module, name: str) -> Any:
    """Return the module of a weight."""
    return inner.get_submodule(name.removesuffix(".weight"))


def _stays_in_blocks(module: Any, kind: str) -> bool:
    """Whether a matrix without adapter stays in blocks on a GPU, where a kernel dequantizes them."""
    return not isinstance(module, nn.Embedding) and kind in BLOCK_BYTES


def _slabs(weight: Tensor) -> list[slice]:
    rows, columns = weight.shape
    step = max(_SLAB_ROWS, _SLAB_VALUES // columns // _SLAB_ROWS * _SLAB_ROWS)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return linear.train(False)
