"""A base that several processes hold, by torch's FSDP2 (`fully_shard`): each keeps a shard of every decoder layer.

A layer's matrices are gathered before its forward and its backward pass and freed after it. They are frozen, so no
gradient is scattered. What is trained, norms, biases, embeddings and the LM head are complete in every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from aegis.model.nf4_format import quant_state_of
from aegis.model.soul_hook import decoder_of
from aegis.training.distributed.group import dead_peers_explained
from aegis.training.kernels.patching import with_mixin

GATHERED_LAYERS = 3
"""Complete layers in memory at a time: the weights of the layer that runs, the buffer that they were gathered in, and
the buffer of the next layer."""
STORAGE = torch.float32
"""The dtype that NF4's bytes are sharded as: torch 2.11 shards floating point only. It has 32 bits, because a copy of a
16-bit float may go by way of float32, and then the bits of a NaN change."""


def shard_base(model: Any, device: torch.device, world_size: int, together: int, *, offload: bool = False) -> None:
    """Shard the matrices of the decoder layers over processes, and move everything else to `device`.

    Args:
        together: number of neighbouring processes that hold one base; it divides the number of all, `world_size`.
        offload: keep the shards in host memory; each is copied to the GPU before its layer is gathered.
        model: the peft model in host memory, frozen but for its adapter. It must have its adapter already: peft reads
            attributes of the weights.
    """
    from bitsandbytes.nn import Linear4bit

    decoder: Any = decoder_of(model)
    layers = decoder.layers
    sharded = {id(p) for p in layers.parameters() if is_sharded(p)}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in sharded:
            tensor.data = tensor.data.to(device)
    for layer in [module for module in layers.modules() if isinstance(module, Linear4bit)]:
        _hold_as_floats(layer, device)
    _fully_shard(decoder, device, _mesh(device, world_size, together), offload)
    # one compiled forward serves all layers of a kind: it must see in which attributes two layers differ
    torch._dynamo.config.skip_fsdp_guards = False


def is_sharded(parameter: Tensor) -> bool:
    """Whether a decoder layer's parameter is sharded: all frozen matrices are."""
    return parameter.ndim > 1 and not parameter.requires_grad


def shard_bytes(matrix_bytes: int, rows: int, world_size: int) -> int:
    """Bytes of one process's shard: FSDP2 gives every process the same number of rows, and fills up the last."""
    return -(-rows // world_size) * (matrix_bytes // rows)


def _mesh(device: torch.device, world_size: int, together: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if together == world_size:
        return init_device_mesh(device.type, (world_size,))
    # no gradient of the base has to cross the groups, so FSDP need not know of more than one
    shape = (world_size // together, together)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))["shard"]


def _fully_shard(decoder: Any, device: torch.device, mesh: Any, offload: bool) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    layers = list(decoder.layers)
    for layer in layers:
        complete = {p for p in layer.parameters() if not is_sharded(p)}
        fully_shard(layer, mesh=mesh, ignored_params=complete, offload_policy=policy)
        layer.set_custom_all_gather(_AllGather())
    # the decoder has no shards of its own, and joins the layers: they share the streams on which they are gathered
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()))
    for number, layer in enumerate(layers):
        layer.set_modules_to_forward_prefetch(layers[number + 1 : number + 2])
        # without this list, torch takes the order of all forward passes since the last backward pass, evaluations
        # included; the first layer names itself, which is gathered already
        layer.set_modules_to_backward_prefetch([layers[max(0, number - 1)]])


class _AllGather:
    """FSDP's all-gather, which explains the death of another process."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        with dead_peers_explained():
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=async_op)


class _ShardedNf4:
    """A mixin for bitsandbytes' linear layer, whose own forward pass looks for the scales at the weight."""

    def forward(self: Any, x: Tensor) -> Any:
        from bitsandbytes import matmul_4bit

        return matmul_4bit(x, self.weight.view(torch.uint8), quant_state=self.quant_state, bias=self.bias)


def _hold_as_floats(layer: Any, device: torch.device) -> None:
    """Let FSDP shard a layer's NF4 bytes as numbers of `STORAGE`; every process has all its scales."""
    layer.quant_state = quant_state_of(layer)
    layer.quant_state.to(device)
    codes = layer.weight.data.view(-1, STORAGE.itemsize).view(STORAGE)
    layer.weight = nn.Parameter(codes, requires_grad=False)
    layer.__class__ = with_mixin(type(layer), _ShardedNf4)  # type: ignore[arg-type]
