"""What stands between a vision transformer's patch map and the dense features: one 3 x 3 convolution, or nothing."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Head: TypeAlias = Literal["conv", "residual", "none"]


class ResidualConv(nn.Conv2d):
    """x + conv(x), with the convolution at 0 before the first step: the map starts as the backbone's own."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, kernel_size=3, padding=1)
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def make_head(kind: Head, width: int) -> nn.Module:
    """A head over maps (N, C, h, w) of a width; zeros stand around the map.

    Args:
        kind: `conv` is the authors' (torch's own random initialisation, so that even without a step it mixes each
            patch with its neighbours at random), `residual` changes nothing before the first step, `none` never.
        width: C.

    Raises:
        ValueError: another kind.
    """
    if kind == "conv":
        return nn.Conv2d(width, width, kernel_size=3, padding=1)
    if kind == "residual":
        return ResidualConv(width)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"head must be conv, residual or none, got {kind!r}")


def apply_head(head: nn.Module, dense: Tensor, strength: float) -> Tensor:
    """The head's map, or the way to it from the backbone's own: 0 gives that one bit for bit, 1 the head's."""
    if strength == 0.0:
        return dense
    refined = head(dense)
    return refined if strength == 1.0 else dense + strength * (refined - dense)


def fold_strength(head: nn.Module, strength: float) -> None:
    """Changes a head into the one whose map `apply_head` gives at a strength."""
    if strength == 1.0 or not isinstance(head, nn.Conv2d):
        return
    with torch.no_grad():
        for parameter in head.parameters():
            parameter *= strength
        if not isinstance(head, ResidualConv):
            # The backbone's own map is the kernel with a one in its middle.
            head.weight.diagonal(dim1=0, dim2=1)[1, 1] += 1 - strength
