"""The soul as it is trained: a skew parameter, the rotation it makes, and the gate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aegis.soul import retraction
from aegis.soul import rotation as so
from aegis.soul.angles import rotation_angles, turned_angles
from aegis.soul.gate import ALPHA_START

Init = Literal["random", "identity"]


class Soul(nn.Module):
    """mixed = (h + g·R h)/(1 + g), g = sigmoid(α), with a rotation R that skew-symmetric matrices move.

    The counter-scale 1/(1 + g) keeps the mix at the size of h: with R = I the soul changes nothing, at any gate.
    Without it, mixed = h + g·R h, and the gate alone multiplies every logit by 1 + g.

    A so8 soul is R = R₀ · map(A): R₀ is fixed (Haar or identity) and A, which starts at zero, is what is learned. A
    dense one carries R itself, from R₀ on: A is the next step alone, zero until an optimizer has moved it, and
    `retract` turns R to R · exp(A) (dynamic trivializations: Lezcano-Casado 2019, arXiv:1909.09501).

    Everything is float32 whatever the base computes in: a half-precision α of 0.1 does not move under a learning rate
    of 1e-4, and half-precision `matrix_exp` returns NaN without a word.

    Args:
        hidden_size: d, the width of the base's final hidden state.
        kind: "so8" (d/8 blocks of 8 × 8) or "dense" (one d × d rotation).
        init: "random" (Haar, from `seed`) or "identity".
        map_: "exp" or "cayley", of a so8 soul.
        seed: of the random start.
        counter_scale: divide the mix by 1 + g.

    Attributes:
        skew: A's free entries, (blocks, n(n−1)/2) float32.
        alpha: scalar float32 parameter; it only gets a gradient when `alpha_is_learned`.
        start: what A turns on from, (blocks, n, n) float32 buffer: R₀, or of a dense soul R.
        origin: R₀, on the CPU.
    """

    start: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        kind: so.Kind = "so8",
        init: Init = "identity",
        map_: so.Map = "exp",
        seed: int = 0,
        alpha: float = ALPHA_START,
        alpha_is_learned: bool = False,
        counter_scale: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.counter_scale = counter_scale
        self.kind = kind
        self.map = map_
        blocks, n = so.block_shape(kind, hidden_size)
        if init == "random":
            start = so.random_rotation(blocks, n, torch.Generator().manual_seed(seed))
        else:
            start = torch.eye(n).repeat(blocks, 1, 1)
        self.register_buffer("start", start)
        self.origin = start.clone()
        self.skew = nn.Parameter(torch.zeros(blocks, n * (n - 1) // 2))
        self.alpha = nn.Parameter(torch.tensor(alpha), requires_grad=alpha_is_learned)
        self._kept: Tensor | None = None
        self._held: tuple[Tensor, Tensor] | None = None
        self._defect: Tensor | None = None

    def rotation(self) -> Tensor:
        """Return R, (blocks, n, n) float32, in the graph if there is one.

        A frozen soul builds it once. A trainable one builds it every time, since fused optimizers on a GPU change the
        parameter without a new tensor version. Between `cache_rotation` and `release` it returns the cached one.
        """
        if self._held is not None:
            return self._held[1]
        if self.skew.requires_grad:
            return self._build()
        if self._kept is None:
            self._kept = self._build()
        return self._kept

    def cache_rotation(self) -> None:
        """Build R once for several backward passes; their gradients gather on it until `release`."""
        built = self._build()
        held = built.detach().requires_grad_()
        held.grad = torch.zeros_like(held)
        self._held = built, held

    def discard_cache(self) -> None:
        """Drop the cached R and its gradient."""
        self._held = None

    def release(self) -> tuple[Tensor, Tensor]:
        """Drop the cached R, and give the gradient that gathered on it to `skew`.

        Returns:
            ‖∂L/∂R‖ of what gathered, 0 if no backward pass went through the soul, and the orthogonality loss
            ‖RᵀR − I‖²_F; scalars. The latter has no gradient to give: R = SQ with `start` S and an orthogonal Q, and
            ‖Qᵀ(SᵀS)Q − I‖ = ‖SᵀS − I‖ whatever Q is.
        """
        assert self._held is not None, "release without cache_rotation"
        (built, held), self._held = self._held, None
        assert held.grad is not None
        with _no_autocast(held.device.type):
            built.backward(held.grad)
            self._defect = so.orthogonality_defect(held.detach())
        return held.grad.norm(), self._defect.square().sum()

    @torch.no_grad()
    def retract(self) -> None:
        """Have R follow what the optimizer has made of A since `release`; a so8 soul's does by itself."""
        defect, self._defect = self._defect, None
        if self.kind == "dense":
            assert defect is not None, "retract without release"
            with _no_autocast(self.skew.device.type):
                self.start.copy_(retraction.retract(self.start, self.skew, defect))
            self.skew.zero_()

    def turned_angles(self) -> Tensor:
        """By how much R has turned from R₀: the angles of R₀ᵀR, float64 in radians, on the CPU."""
        if self.kind == "dense":
            return rotation_angles(self.origin.mT @ self.start.cpu())
        return turned_angles(self.skew, self.start.shape[-1], self.map)

    def _build(self) -> Tensor:
        # autocast would hand the matrix product to bfloat16, and R would be orthogonal to 2e-3 only
        with _no_autocast(self.skew.device.type):
            if self.kind == "dense":
                return retraction.trivialized(self.start, self.skew)
            return self.start @ so.rotate(so.skew_matrix(self.skew, self.start.shape[-1]), self.map)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mix of h and R h with the shape and dtype of `hidden` (…, hidden_size); summed in float32."""
        with _no_autocast(hidden.device.type):
            wide, coarse = hidden.float(), hidden.dtype != torch.float32
            gate = torch.sigmoid(self.alpha)
            mixed = wide + gate * so.apply_rotation(self.rotation(), wide, coarse=coarse)
            if self.counter_scale:
                mixed = mixed / (1 + gate)
        return mixed.to(hidden.dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Soul:
        if fn(torch.zeros(0)).dtype != torch.float32:
            raise TypeError("the soul stays float32: half precision breaks its rotation and freezes its gate")
        self._kept = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    # the meta device, on which memory is estimated, has none to switch off
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
