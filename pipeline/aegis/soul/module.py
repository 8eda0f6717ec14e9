"""The soul as a torch module: a skew-symmetric parameter, the rotation made from it, and the gate."""

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
from aegis.soul.kind import Kind, block_shape

Init = Literal["random", "identity"]


class Soul(nn.Module):
    """Computes mixed = (h + g·R h)/(1 + g), g = sigmoid(α), with a rotation R made from skew-symmetric matrices.

    The counter-scale 1/(1 + g) keeps the mix at the size of h: with R = I the soul changes nothing, at any gate.
    Without it, mixed = h + g·R h, and the gate alone multiplies every logit by 1 + g.

    With blocks, R = R₀ · map(A): R₀ is fixed (Haar or identity), and A starts at zero and is learned. A dense soul
    stores R itself, which starts at R₀; A is only the next step, zero until an optimizer has changed it, and `retract`
    replaces R by R · exp(A) (dynamic trivializations: Lezcano-Casado 2019, arXiv:1909.09501).

    Everything is float32, whatever the base computes in: a half-precision α of 0.1 does not move under a learning rate
    of 1e-4, and half-precision `matrix_exp` silently returns NaN.

    Args:
        hidden_size: d, the width of the base's final hidden state.
        kind: "so8" (d/8 blocks of 8 × 8), another size of blocks, or "dense" (one d × d rotation).
        init: "random" (Haar, from `seed`) or "identity".
        map_: "exp" or "cayley"; for blocks only.
        seed: the seed of a random start.
        alpha: the first α.
        alpha_is_learned: whether α gets a gradient.
        counter_scale: divide the mix by 1 + g.

    Attributes:
        skew: A's free entries, (blocks, n(n−1)/2) float32.
        alpha: scalar float32 parameter.
        start: (blocks, n, n) float32 buffer: R₀, or R for a dense soul.
        initial: R₀, on the CPU.
    """

    start: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        kind: Kind = "so8",
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
        blocks, n = block_shape(kind, hidden_size)
        if init == "random":
            start = so.random_rotation(blocks, n, torch.Generator().manual_seed(seed))
        else:
            start = torch.eye(n).repeat(blocks, 1, 1)
        self.register_buffer("start", start)
        self.initial = start.clone()
        self.skew = nn.Parameter(torch.zeros(blocks, n * (n - 1) // 2))
        self.alpha = nn.Parameter(torch.tensor(alpha), requires_grad=alpha_is_learned)
        self._kept: Tensor | None = None
        self._held: tuple[Tensor, Tensor] | None = None
        self._defect: Tensor | None = None

    def rotation(self) -> Tensor:
        """Return R, (blocks, n, n) float32, differentiable if `skew` is.

        A frozen soul computes R once. A trainable one computes it every time, because fused optimizers on a GPU change
        the parameter without a new tensor version. Between `cache_rotation` and `release` it returns the cached R.
        """
        if self._held is not None:
            return self._held[1]
        if self.skew.requires_grad:
            return self._build()
        if self._kept is None:
            self._kept = self._build()
        return self._kept

    def cache_rotation(self) -> None:
        """Compute R once for several backward passes; their gradients accumulate on it until `release`."""
        built = self._build()
        held = built.detach().requires_grad_()
        held.grad = torch.zeros_like(held)
        self._held = built, held

    def discard_cache(self) -> None:
        """Drop the cached R and its gradient."""
        self._held = None

    def release(self) -> tuple[Tensor, Tensor]:
        """Drop the cached R, and pass its accumulated gradient on to `skew`.

        Returns:
            Two scalars: ‖∂L/∂R‖ of the accumulated gradient, 0 if no backward pass used the soul; and the orthogonality
            loss ‖RᵀR − I‖²_F. The latter has no gradient: R = SQ with `start` S and an orthogonal Q, and
            ‖Qᵀ(SᵀS)Q − I‖ = ‖SᵀS − I‖ for every Q.
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
        """Apply the optimizer's change of A to R, after `release`; blocks need no such step."""
        defect, self._defect = self._defect, None
        if self.kind == "dense":
            assert defect is not None, "retract without release"
            with _no_autocast(self.skew.device.type):
                self.start.copy_(retraction.retract(self.start, self.skew, defect))
            self.skew.zero_()

    def turned_angles(self) -> Tensor:
        """Return the angles of R₀ᵀR, by which R has turned from its start; float64 in radians, on the CPU."""
        if self.kind == "dense":
            return rotation_angles(self.initial.mT @ self.start.cpu())
        return turned_angles(self.skew, self.start.shape[-1], self.map)

    def _build(self) -> Tensor:
        # with autocast the matrix product would be in bfloat16, and R orthogonal to 2e-3 only
        with _no_autocast(self.skew.device.type):
            if self.kind == "dense":
                return retraction.trivialized(self.start, self.skew)
            return self.start @ so.rotate(so.skew_matrix(self.skew, self.start.shape[-1]), self.map)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mix of h and R h, computed in float32, with the shape and dtype of `hidden` (…, hidden_size)."""
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
    # the meta device, on which memory is estimated, has no autocast
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
