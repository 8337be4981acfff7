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


class TransferOptions(Options):
    """`equivariance.transfer`: keypoints carried from one object to another of its class, on PF-PASCAL.

    Args:
        data: the folder `PF-dataset-PASCAL` with `test_pairs_pf_different_views.csv` and
            `test_pairs_pf_same_views.csv`; images are named from the folder above it.
        lists: which of the two are measured.
        size: side in pixels of the square that images are scaled and padded to.
        alphas: thresholds, as shares of that side.
        product: of the unit source feature and the target's, at unit length (`cosine`) or as it is (`dot`, what the
            released code does).
        search: in the `image`, or in the padded `canvas` too, as the released code does.
        patches: patches along that side in what the model sees; null = the model's own, and the only choice for a model
            of one image size.
        picture: draw the first pairs of each list.
    """

    data: str
    lists: Annotated[tuple[Literal["different", "same"], ...], Field(min_length=1)] = ("different", "same")
    size: Annotated[int, Field(ge=16, le=4096)] = 840
    alphas: Shares = (0.05, 0.1, 0.15)
    product: Literal["cosine", "dot"] = "cosine"
    search: Literal["image", "canvas"] = "image"
    patches: Positive | None = 60
    picture: bool = True


class PoseOptions(Options):
    """`equivariance.pose`: pose of an object from 2D-3D matches and PnP, on OnePose-LowTexture.

    Args:
        data: the folder of objects `<id>-<name>-<type>`, each with the sequences `<name>-1` (reference) and `<name>-2`.
        sfm: the folder with `<id>-<name>-<type>/anno/anno_3d_average.npz` of each object.
        objects: names of the objects' folders; None = all.
        cell: pixels of the image to a patch of the model, by resizing it; null = the model's own resolution, and the
            only choice for a model of one image size.
        every: each so many frames of the second sequence are measured.
        grid: pixels between the points of a frame that are matched.
        templates: reference features are drawn down to so many.
        seed: of that draw.
        reprojection: pixels up to which RANSAC counts a match as an inlier.
        iterations: of RANSAC, at most.
        confidence: at which RANSAC stops.
        inliers: a pose with no more inliers counts as none found.
        limits: a pose counts as right below so many degrees and so many centimetres.
    """

    data: str
    sfm: str
    objects: tuple[str, ...] | None = None
    cell: Positive | None = 8
    every: Positive = 10
    grid: Positive = 4
    templates: Positive = 120_000
    seed: Seed = 0
    reprojection: Annotated[float, Field(gt=0)] = 8.0
    iterations: Positive = 10_000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.99
    inliers: Annotated[int, Field(ge=3)] = 5
    limits: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1, 3, 5)


class TrackingOptions(Options):
    """`equivariance.tracking`: points followed through videos by their features alone, on TAP-Vid-DAVIS.

    Args:
        data: `tapvid_davis.pkl`.
        queries: points asked for at their `first` frame, or at every fifth frame (`strided`).
        videos: names of videos; None = all.
        width, height: that frames are scaled to, in pixels.
        patches: patches along the longer side of what the model sees; null = the model's own, and the only choice for a
            model of one image size.
        stride: pixels between patches of what the model sees; null = the model's own.
        features: the map that the `model` gives, or that of its last block before the final norm (`prenorm`), which the
            released code feeds to a head that was trained after the norm.
        radius: pixels about the best cell over which a place is averaged.
        temperature: of the weights of that average.
        anchor_similarity: cosine from which a frame's point stands as an anchor.
        similarity: cosine below which a point counts as hidden.
        frames_at_once: frames encoded together.
        picture: draw the first video.
    """

    data: str
    queries: Literal["strided", "first"] = "strided"
    videos: tuple[str, ...] | None = None
    width: Annotated[int, Field(ge=16, le=4096)] = 854
    height: Annotated[int, Field(ge=16, le=4096)] = 476
    patches: Positive | None = 61
    stride: Positive | None = 7
    features: Literal["model", "prenorm"] = "model"
    radius: Annotated[float, Field(gt=0)] = 35.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    anchor_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.7
    similarity: Annotated[float, Field(ge=-1, le=1)] = 0.6
    frames_at_once: Positive = 4
    picture: bool = True
