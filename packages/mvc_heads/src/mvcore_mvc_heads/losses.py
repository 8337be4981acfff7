"""The losses of the multi-view heads (Laugaland & Korth 2024), over all pairs of a batch, and a softmax contrast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mvcore_mvc_heads.blocks import (
    Blocks,
    blocks_of,
    directions,
    other_texts,
    other_views,
    own_texts,
    same_views,
    texts_before,
    two_texts,
)

Normalise = Literal["mean", "reference"]
CrossPairs = Literal["all", "figure"]

_ROWS = 1024
"""Rows of the softmax that are held at once."""


@dataclass(frozen=True)
class Similarities:
    """The two sides of a contrast: mean cosine of pairs that belong together, and of those that do not."""

    positive: Tensor
    negative: Tensor


def attraction(blocks: Blocks, text_weight: float | None = None) -> Tensor:
    """() mean cosine of the pairs inside of an object: two views, or a view and the text (S+ of the paper's figure).

    Args:
        text_weight: share of the text-image pairs; None = by their number, as in the authors' code.
    """
    if text_weight is None:
        return (same_views(blocks) + own_texts(blocks)).mean()
    return (1 - text_weight) * same_views(blocks).mean() + text_weight * own_texts(blocks).mean()


def repulsion(
    blocks: Blocks,
    *,
    normalise: Normalise = "mean",
    cross_pairs: CrossPairs = "all",
    text_weight: float | None = None,
) -> Tensor:
    """() mean cosine of the pairs across two objects (D-); 0 for one object.

    Args:
        normalise: `mean` divides by the number of pairs; `reference` by the authors' count, which leaves out the column
            of the other object's text though its cosines are in the sum.
        cross_pairs: `all`; or `figure`: what the paper's figure draws, where a text meets the views of the objects
            after its own in the batch and no other text.
        text_weight: share of the text-image pairs; None = by number, text-text pairs, a constant, among them.
    """
    if text_weight is not None:
        return (1 - text_weight) * other_views(blocks).mean() + text_weight * other_texts(blocks).mean()
    drawn = other_views(blocks) + texts_before(blocks)
    if cross_pairs == "figure":
        return drawn.mean()
    every = other_views(blocks) + other_texts(blocks) + two_texts(blocks)
    return every.mean(drawn.count if normalise == "reference" else None)


def encoding_repulsion(blocks: Blocks, normalise: Normalise = "mean") -> Tensor:
    """() mean cosine of views of two objects (D_vi); `reference` divides by V_a (V_b - 1) for objects a before b."""
    pairs = other_views(blocks)
    if normalise == "mean":
        return pairs.mean()
    before = blocks.counts.cumsum(dim=0) - blocks.counts
    return pairs.mean((before * (blocks.counts - 1)).sum())


def reconstruction_error(original: Tensor, decoded: Tensor) -> Tensor:
    """() mean Euclidean distance, not squared, of (N, D) vectors and what was made of them (A); 0 gets no gradient."""
    return torch.linalg.vector_norm(original - decoded, dim=-1).mean()


def info_nce(vectors: Tensor, owner: Tensor, objects: int, *, temperature: float) -> Tensor:
    """() contrast of M vectors in O objects: each against all others, those of its own object being right answers.

    The mean over vectors i with company P(i) of `logsumexp_{j != i} s_ij - mean_{p in P(i)} s_ij`, with s the cosine
    over the temperature (Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2). The M x M matrix is
    never held whole.

    Args:
        vectors: (M, D) of any scale.
        owner: (M,) int64 object of each.
        objects: O.
        temperature: above 0.
    """
    unit = directions(vectors)
    sums = unit.new_zeros(objects, unit.shape[1]).index_add(0, owner, unit)
    company = unit.new_zeros(objects).index_add(0, owner, unit.new_ones(len(unit)))
    others = company.index_select(0, owner) - 1
    matched = ((sums.index_select(0, owner) - unit) * unit).sum(dim=1) / (temperature * others.clamp(min=1))
    parts: list[Tensor] = []
    for start in range(0, len(unit), _ROWS):
        rows = torch.arange(start, min(start + _ROWS, len(unit)), device=unit.device)
        parts.append(checkpoint(_partition, unit, rows, temperature, use_reentrant=False, preserve_rng_state=False))  # pyright: ignore[reportArgumentType]
    accompanied = (others > 0).to(unit.dtype)
    return ((torch.cat(parts) - matched) * accompanied).sum() / accompanied.sum().clamp(min=1)


def _partition(unit: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """(R,) logsumexp of each row's cosines with all vectors but itself."""
    logits = unit.index_select(0, rows) @ unit.T / temperature
    return logits.scatter(1, rows[:, None], float("-inf")).logsumexp(dim=1)


# -- one text and equally many views of each object ------------------------------------------------------------------


def object_similarity_loss(text: Tensor, views: Tensor) -> Tensor:
    """Minus the mean cosine over all pairs among an object's text and views; in -1 to 1.

    Args:
        text: (B, D) one vector an object, of any scale; no gradient flows into it.
        views: (B, V, D) of any scale; a zero vector's cosines count as 0.

    Returns:
        ().

    Raises:
        ValueError: other shapes or types, or a value that is not finite.
    """
    return -attraction(_checked_blocks(views, text))


def contrastive_loss(
    text: Tensor,
    views: Tensor,
    *,
    similarity_weight: float = 0.5,
    normalise: Normalise = "mean",
    cross_pairs: CrossPairs = "all",
) -> Tensor:
    """`(1 - w) D - w S`: S the mean cosine inside of objects, D that across objects; linear, without a temperature.

    Args:
        text: (B, D) one vector an object, of any scale; no gradient flows into it.
        views: (B, V, D) of any scale; a zero vector's cosines count as 0.
        similarity_weight: w, in 0 to 1.
        normalise: `reference` divides D by the authors' count, which makes it (V + 1) / V times the mean.
        cross_pairs: `figure` takes only the pairs that the paper's figure draws.

    Returns:
        (). With one object D is 0.

    Raises:
        ValueError: other shapes or types, a value that is not finite, a weight outside of 0 to 1, or another choice.
    """
    _check_share("similarity_weight", similarity_weight)
    _check_choice("normalise", normalise, Normalise)
    _check_choice("cross_pairs", cross_pairs, CrossPairs)
    blocks = _checked_blocks(views, text)
    negative = repulsion(blocks, normalise=normalise, cross_pairs=cross_pairs)
    return (1 - similarity_weight) * negative - similarity_weight * attraction(blocks)


def autoencoder_loss(
    views: Tensor,
    decoded: Tensor,
    invariant: Tensor,
    *,
    similarity_weight: float = 0.5,
    reconstruction_weight: float = 0.5,
    normalise: Normalise = "mean",
) -> Tensor:
    """`a A + (1 - a) ((1 - w) D - w S)`: A the distance to what was decoded, S and D over the invariant encodings.

    With w = 1, or with one object, the second part is -S.

    Args:
        views: (B, V, D) what went in.
        decoded: (B, V, D) what came out.
        invariant: (B, V, E) encodings; a zero vector's cosines count as 0.
        similarity_weight: w, in 0 to 1.
        reconstruction_weight: a, in 0 to 1.
        normalise: `reference` divides D by the authors' count, which makes it V / (V - 1) times the mean.

    Returns:
        ().

    Raises:
        ValueError: other shapes or types, one view an object, a value that is not finite, a weight outside of 0 to 1,
            or another choice.
    """
    _check_share("similarity_weight", similarity_weight)
    _check_share("reconstruction_weight", reconstruction_weight)
    _check_choice("normalise", normalise, Normalise)
    if views.shape != decoded.shape or invariant.shape[:-1] != views.shape[:-1]:
        raise ValueError(
            f"views and decoded must both be (B, V, D) and invariant (B, V, E), not {tuple(views.shape)}, "
            f"{tuple(decoded.shape)} and {tuple(invariant.shape)}"
        )
    blocks = _checked_blocks(invariant, None, name="invariant")
    if views.shape[1] < 2:
        raise ValueError(f"an object needs at least 2 views to be compared with itself, got views {tuple(views.shape)}")
    for name, given in (("views", views), ("decoded", decoded)):
        _check_vectors(name, given)
    score = score_of(
        attraction(blocks), encoding_repulsion(blocks, normalise), similarity_weight, several=len(views) > 1
    )
    original, remade = _computed(views), _computed(decoded)
    return reconstruction_weight * reconstruction_error(original, remade) + (1 - reconstruction_weight) * score


def score_of(positive: Tensor, negative: Tensor, similarity_weight: float, *, several: bool) -> Tensor:
    """The autoencoder's `(1 - w) D - w S`; -S where w is 1 or there are not several objects."""
    if similarity_weight == 1 or not several:
        return -positive
    return (1 - similarity_weight) * negative - similarity_weight * positive


def _checked_blocks(views: Tensor, text: Tensor | None, name: str = "views") -> Blocks:
    if views.ndim != 3 or 0 in views.shape:
        raise ValueError(f"{name} must be (B, V, D) with at least one object and view, not {tuple(views.shape)}")
    if text is not None and text.shape != (views.shape[0], views.shape[2]):
        raise ValueError(
            f"text must be (B, D), one row for each object of {name} {tuple(views.shape)}, not {tuple(text.shape)}"
        )
    for given_name, given in ((name, views), ("text", text)):
        if given is not None:
            _check_vectors(given_name, given)
    objects, count, _ = views.shape
    counts = torch.full((objects,), count, device=views.device)
    each = torch.arange(objects, device=views.device)
    return blocks_of(_computed(views).flatten(0, 1), each.repeat_interleave(count), counts, text, each)


def _check_vectors(name: str, given: Tensor) -> None:
    if not given.is_floating_point():
        raise ValueError(f"{name} must be floating, not {given.dtype}")
    finite = torch.linalg.vector_norm(given.detach(), math.inf, dim=-1).isfinite()
    if not bool(finite.all()):
        row = (~finite).nonzero()[0].tolist()
        raise ValueError(f"{name}[{', '.join(map(str, row))}] holds a value that is not finite")


def _computed(vectors: Tensor) -> Tensor:
    """In single precision at least."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0 to 1, not {value}")


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be {' or '.join(map(repr, get_args(choices)))}, not {value!r}")
