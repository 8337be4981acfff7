"""The losses as loops over pairs, and batches of any shape to compare them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from mvcore.api import Features, ViewBatch
from torch import Tensor

Item = tuple[int, str, Tensor]
"""A member of an object: the object, `text` or `view`, and its vector."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """0 where one of them is zero."""
    lengths = a.norm() * b.norm()
    return (a @ b) / lengths if lengths else 0 * (a.sum() + b.sum())


def members(text: Tensor | None, views: Tensor) -> list[Item]:
    """Each object's text and then its views, object by object."""
    found: list[Item] = []
    for i in range(len(views)):
        if text is not None:
            found.append((i, "text", text[i]))
        found += [(i, "view", view) for view in views[i]]
    return found


def mean_of(pairs: Sequence[tuple[Item, Item]], divisor: float | None = None) -> Tensor:
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    total = torch.stack([cosine(a[2], b[2]) for a, b in pairs]).sum()
    return total / (len(pairs) if divisor is None else divisor)


def inside(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    return [(a, b) for a, b in combinations(items, 2) if a[0] == b[0]]


def across(items: Sequence[Item], wanted: Callable[[Item, Item], bool] = lambda a, b: True) -> list[tuple[Item, Item]]:
    """Pairs of two objects, the earlier object first."""
    return [(a, b) for a, b in combinations(items, 2) if a[0] != b[0] and wanted(a, b)]


def in_figure(a: Item, b: Item) -> bool:
    """The figure draws no column of the later object's text."""
    return b[1] == "view"


def contrastive(text: Tensor, views: Tensor, w: float, normalise: str, cross_pairs: str) -> Tensor:
    items = members(text, views)
    drawn = across(items, in_figure)
    pairs = drawn if cross_pairs == "figure" else across(items)
    negative = mean_of(pairs, len(drawn) if normalise == "reference" and drawn else None)
    return (1 - w) * negative - w * mean_of(inside(items))


def autoencoder(views: Tensor, decoded: Tensor, invariant: Tensor, w: float, a: float, normalise: str) -> Tensor:
    objects, count = views.shape[:2]
    items = members(None, invariant)
    positive, pairs = mean_of(inside(items)), across(items)
    divisor = count * (count - 1) * objects * (objects - 1) / 2 if normalise == "reference" else None
    score = -positive
    if w < 1 and objects > 1:
        score = (1 - w) * mean_of(pairs, divisor) - w * positive
    distances = [(x - y).norm() for x, y in zip(views.flatten(0, 1), decoded.flatten(0, 1), strict=True)]
    return a * torch.stack(distances).mean() + (1 - a) * score


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True, retain_graph=True)[0]


def vectors(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch_of(counts: Sequence[int], caption_object: Sequence[int] = ()) -> ViewBatch:
    """Objects with these numbers of views, and captions of these objects."""
    return ViewBatch.make(
        list(counts),
        captions=[f"caption {k}" for k in range(len(caption_object))],
        caption_object=torch.tensor(caption_object, dtype=torch.int64),
        caption_view=torch.full((len(caption_object),), -1),
    )


def ragged_items(views: Tensor, texts: Tensor, batch: ViewBatch) -> list[Item]:
    """Views, and of each object's captions every one; their weight is `ragged_weight`."""
    items = [(int(i), "view", view) for i, view in zip(batch.object_of_view, views, strict=True)]
    return items + [(int(i), "text", text) for i, text in zip(batch.caption_object, texts, strict=True)]


def ragged_mean(pairs: Sequence[tuple[Item, Item]], batch: ViewBatch) -> Tensor:
    """A mean in which an object's captions together weigh as one text."""
    share = [1 / max(1, batch.caption_object.tolist().count(i)) for i in range(batch.n_objects)]

    def weight(a: Item, b: Item) -> float:
        return (share[a[0]] if a[1] == "text" else 1) * (share[b[0]] if b[1] == "text" else 1)

    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    weights = torch.tensor([weight(a, b) for a, b in pairs], dtype=torch.float64)
    return (torch.stack([cosine(a[2], b[2]) for a, b in pairs]) * weights).sum() / weights.sum()


def features_of(batch: ViewBatch, **values: Tensor) -> Features:
    axes = dict.fromkeys(("mvc_heads.original", "mvc_heads.decoded", "mvc_heads.invariant"), "view")
    return Features({key.replace("__", "."): value for key, value in values.items()}, axes=axes)  # pyright: ignore[reportArgumentType]
