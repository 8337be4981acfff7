"""Smooth-AP over 3D correspondences (You et al., ICLR 2025; Brown et al., ECCV 2020).

With similarities `sim`, distances `D` in space, `G(x) = 1 / (1 + exp(-x / tau))`, positives P = {(s, p): D < positive}
and negatives N(s) = {t: D > negative}, the authors' loss is the mean over P of `1 - (ap1 + ap2) / 2` with

    ap1 = (1 + G(sim_sp - 1)) / (1 + G(sim_sp - 1) + sum of G(sim_sn - 1) over N(s))
    ap2 = (1 + G(1 - sim_sp)) / (1 + G(1 - sim_sp) + sum of G(sim_sn - sim_sp) over N(s)),

which is Smooth-AP of two positives: the query itself at similarity 1, and p. Other positives of s take no part in a
positive's term. A direct evaluation holds several tensors of |P| x T; here a few positives are evaluated at a time
(`chunks.py`), by formulas for value and gradient, and the sums in ap1 are made once for each source.

The authors clamp x / tau to -50 .. 50 in G. Either end is within 2e-22 of 0 and 1, which no sum here can hold, so the
clamp is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mvcore_equivariance.chunks import Bounds, Points, Ranked, Term, by_autograd, over_near


def smooth_ap(
    f1: Tensor,
    f2: Tensor,
    x1: Tensor,
    x2: Tensor,
    *,
    positive: float = 5e-3,
    negative: float = 0.1,
    tau: float = 0.01,
) -> Tensor:
    """The authors' Smooth-AP loss of descriptors of two views' points; see the top of this file.

    In float32 within autocast, for half precision too, and never in TF32; distances are differences of coordinates, not
    the matrix product that `torch.cdist` takes for many points. On an accelerator the number of positives is waited
    for. There are no second derivatives.

    Args:
        f1: (S, C) descriptors of the source points, compared as they are; the method gives unit vectors.
        f2: (T, C) of the target points.
        x1: (S, 3) where they are in space; no gradient flows into places. A point with a coordinate that is not finite
            is neither positive nor negative.
        x2: (T, 3).
        positive: distance below which a target is a positive.
        negative: distance above which a target is a negative.
        tau: temperature.

    Returns:
        () from 0 (perfect) to 1 (all descriptors equal), about 0.5 for random ones; 0 with zero gradient without a
        positive.

    Raises:
        ValueError: wrong shapes or types, or `positive`, `negative` or `tau` out of range.
    """
    _check(f1, f2, x1, x2)
    if not (0 < positive <= negative and tau > 0):
        raise ValueError(f"needs 0 < positive <= negative and tau > 0, got {positive}, {negative} and {tau}")
    dtype = torch.promote_types(torch.promote_types(f1.dtype, f2.dtype), torch.float32)
    source, target = (_points(f.to(dtype), x) for f, x in ((f1, x1), (f2, x2)))
    bounds = Bounds(source.xyz.new_tensor(positive), source.xyz.new_tensor(negative))
    return over_near(source, target, bounds, one_positive(tau))[0]


def one_positive(tau: float) -> Term:
    """The authors' form, each positive by itself."""

    def term(ranked: Ranked) -> tuple[Tensor, Tensor]:
        p, weight, row = ranked.positive, ranked.weight, ranked.row
        negatives = torch.where(ranked.negative, ranked.similar, -torch.inf)
        # The query, at similarity 1: the same sums for all positives of a source.
        g = ((negatives - 1).div_(tau)).sigmoid_()
        one, above_one = torch.sigmoid((p - 1) / tau), ranked.of_rows(g.sum(-1))
        first = 1 + one
        all_first = first + above_one
        pull = weight * first / all_first.square()
        slope = g.addcmul_(g, g, value=-1)
        slope *= (pull if row is None else torch.zeros_like(slope[..., 0]).index_add_(1, row, pull))[..., None]
        # The positive: sums of its own.
        g = (negatives if row is None else negatives.index_select(1, row)).sub_(p[..., None]).div_(tau).sigmoid_()
        other, above = torch.sigmoid((1 - p) / tau), g.sum(-1)
        second = 1 + other
        all_second = second + above
        push = weight * second / all_second.square()
        g.addcmul_(g, g, value=-1)
        steep = g.sum(-1)
        if row is None:
            slope.addcmul_(g, push[..., None])
        else:
            slope.baddbmm_(_spread(push, row, slope.shape[1]), g)
        loss = (weight * (1 - (first / all_first + second / all_second) / 2)).sum()
        own = above_one / all_first.square() * one * (1 - one) - above / all_second.square() * other * (1 - other)
        ranked.add_at_positives(slope, -(weight * own + push * steep))
        return loss, slope.div_(2 * tau)

    return term


def _spread(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """(b, R, K): value k in row `row[k]`."""
    spread = values.new_zeros(len(values), rows, len(row))
    spread[:, row, torch.arange(len(row), device=row.device)] = values
    return spread


def several_positives(tau: float) -> Term:
    """Smooth-AP of all positives of a source and of the query itself (Brown et al., eq. 7), jointly ranked.

    `AP_s = 1 / (1 + k) sum over i of R(i, P) / R(i, P and N)` with `R(i, A) = 1 + sum over j in A, not i, of
    G(sim_j - sim_i)`, P being the query at similarity 1 and the k positives; the loss is 1 - AP. With one positive each
    it is `one_positive`. Weights are those of `over_near` with `mean="sources"`.
    """

    def value(ranked: Ranked) -> Tensor:
        p, near = ranked.positive, ranked.near()
        several = ranked.of_rows(near.sum(-1))  # k
        above, rank = list[Tensor](), list[Tensor]()
        for one in (torch.ones_like(p), p):
            g = torch.sigmoid((ranked.of_rows(ranked.similar) - one[..., None]) / tau)
            above.append((g * ranked.of_rows(ranked.negative)).sum(-1))
            rank.append(1 + (g * ranked.of_rows(near)).sum(-1))
        # A positive is not ranked against itself, and is against the query.
        rank[1] = rank[1] - 0.5 + torch.sigmoid((1 - p) / tau)
        query, own = (r / (r + a) for r, a in zip(rank, above, strict=True))
        # A source's k positives share its weight: each brings its own precision in full and the query's in part.
        return (ranked.weight * (1 - (query + several * own) / (1 + several))).sum()

    return by_autograd(value)


def info_nce(tau: float) -> Term:
    """Cross entropy of each positive among itself and the negatives, at a temperature."""

    def value(ranked: Ranked) -> Tensor:
        p = ranked.positive
        negatives = ranked.of_rows(torch.where(ranked.negative, ranked.similar, -torch.inf))
        return (ranked.weight * (torch.cat([p[..., None], negatives], -1) / tau).logsumexp(-1)).sum() - (
            ranked.weight * p / tau
        ).sum()

    return by_autograd(value)


def _points(features: Tensor, xyz: Tensor) -> Points:
    xyz = xyz if xyz.dtype == torch.float64 else xyz.float()
    return Points(features[None], xyz.detach()[None], xyz.isfinite().all(1)[None])


def _check(f1: Tensor, f2: Tensor, x1: Tensor, x2: Tensor) -> None:
    shapes = ", ".join(str(tuple(value.shape)) for value in (f1, f2, x1, x2))
    if f1.ndim != 2 or f2.ndim != 2 or f1.shape[1] != f2.shape[1]:
        raise ValueError(f"f1 and f2 must be (S, C) and (T, C), got shapes {shapes}")
    if x1.shape != (len(f1), 3) or x2.shape != (len(f2), 3):
        raise ValueError(f"x1 and x2 must be (S, 3) and (T, 3), one row a descriptor, got shapes {shapes}")
    if not (f1.is_floating_point() and f2.is_floating_point()):
        raise ValueError(f"f1 and f2 must be floating, not {f1.dtype} and {f2.dtype}")
