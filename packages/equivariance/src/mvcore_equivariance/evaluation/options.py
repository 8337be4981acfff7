"""Options of the evaluators. Imports no torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from mvcore.api import Options
from pydantic import AfterValidator, Field

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


def _increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in pairwise(values)):
        raise ValueError(f"must increase, not {list(values)}")
    return values


Shares = Annotated[tuple[Share, ...], Field(min_length=1), AfterValidator(_increasing)]
Edges = Annotated[tuple[Annotated[float, Field(ge=0, le=180)], ...], Field(min_length=2), AfterValidator(_increasing)]


class CorrespondenceOptions(Options):
    """`equivariance.correspondence`: does a pixel's feature find the same point of the object in another view?

    Args:
        domain: where the nearest feature is sought: pixels of the object (`mask`), or of the whole `image`.
        normaliser: errors are divided by the shortest edge of the image (`edge`, the paper's), or by the longer side of
            the object's bounding box in the searched view (`bbox`).
        thresholds: of PCDP, as shares of that length.
        pairs_per_object: ordered pairs of views, drawn; None = all.
        points_per_pair: pixels of the first view, drawn among those that the second sees; None = all.
        search_stride: only the centres of cells of this many pixels are searched.
        angle_bins: edges in degrees of the bins of viewpoint change, the angle at which a surface point sees the two
            cameras apart.
        seed: of the draws.
        sources: which sources are measured; None = all.
        picture: draw correspondences and feature maps of each source's first object.
        views_at_once: views encoded together.
    """

    domain: Literal["mask", "image"] = "mask"
    normaliser: Literal["edge", "bbox"] = "edge"
    thresholds: Shares = (0.05, 0.1, 0.2)
    pairs_per_object: Positive | None = 12
    points_per_pair: Positive | None = 64
    search_stride: Positive = 1
    angle_bins: Edges = (0, 30, 60, 90, 120, 180)
    seed: Seed = 0
    sources: tuple[str, ...] | None = None
    picture: bool = True
    views_at_once: Positive = 16
