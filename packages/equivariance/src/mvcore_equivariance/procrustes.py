"""The rigid motion between matched points, differentiably: the paper's alternative loss, of which no code was released.

Each source point is matched softly, `y_s = sum over t of softmax(sim_st / tau) x_t`, and the rotation and translation
that bring the sources to their matches in the least squares are found (Kabsch). Both views' points are in the object's
own frame, so the right motion is none, and the loss is how far it moves the points on average.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mvcore_equivariance.chunks import Points

_DEGENERATE = 1e-4
"""Below this part of the largest singular value, a rotation about an axis is not determined and gets no gradient."""


def procrustes(source: Points, target: Points, counted: Tensor, scale: Tensor, tau: float) -> Tensor:
    """How far the rigid motion found from soft matches moves the points, on average.

    Args:
        source: S points of each of B pairs.
        target: T points.
        counted: (B, S) bool, the sources to match.
        scale: (B, 1) the unit of distances, above 0.
        tau: temperature.

    Returns:
        (B,) in units of `scale`; 0 for a pair with fewer than 3 points to match.
    """
    similar = source.features @ target.features.mT / tau
    # Finite, so that a pair without any target has a softmax.
    share = similar.masked_fill(~target.valid[:, None], -1e9).softmax(-1)
    matched = share @ target.xyz.to(share.dtype)
    points = source.xyz.to(share.dtype)
    enough = counted.sum(1) >= 3
    weight = (counted & enough[:, None]).to(share.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    centre, matched_centre = ((weight[..., None] * x).sum(1, keepdim=True) for x in (points, matched))
    turn = nearest_rotation((weight[..., None] * (matched - matched_centre)).mT @ (points - centre))
    moved = (points - centre) @ turn.mT + matched_centre
    return (weight * torch.linalg.vector_norm(moved - points, dim=-1)).sum(1) / scale[:, 0]


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R of the largest trace(R^T M).

    The gradient is made from sums of singular values alone, so that equal ones do no harm as in that of `svd`.

    Args:
        matrix: (..., 3, 3).
    """
    return _NearestRotation.apply(matrix)


class _NearestRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        u, s, vt = torch.linalg.svd(matrix)
        sign = torch.ones_like(s)
        sign[..., 2] = torch.linalg.det(u @ vt).sign()
        rotation = (u * sign[..., None, :]) @ vt
        ctx.save_for_backward(rotation, s * sign, vt)
        return rotation

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # M = R P with P symmetric: the skew part of R^T dM is W P + P W for R^T dR = W, diagonal in P's own basis.
        rotation, s, vt = ctx.saved_tensors
        inner = vt @ rotation.mT @ grads[0] @ vt.mT
        sums = s[..., :, None] + s[..., None, :]
        known = sums > _DEGENERATE * s[..., :1, None]
        skew = torch.where(known, (inner - inner.mT) / torch.where(known, sums, 1), 0)
        return rotation @ vt.mT @ skew @ vt
