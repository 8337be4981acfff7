"""Options of the plugin's parts."""

from __future__ import annotations

from typing import Literal

from mvcore.api import Options
from pydantic import Field


class CrossViewOptions(Options):
    """`duoduo.cross_view`: attention across the views of an object."""

    cross_view_from: int = Field(6, ge=0, description="the first block that attends across views; all blocks = none")
    train_from: int | None = Field(
        None, ge=0, description="the attention weights of the blocks from this one on train; null = cross_view_from"
    )
    prefix_cache: bool = Field(
        False, description="read the tokens before that block from the trainer duoduo.prefix_cache, not images"
    )

    def needs(self) -> frozenset[str]:
        """Images, or the tokens that stand for them."""
        return frozenset({"state:duoduo.prefix"} if self.prefix_cache else {"images"})


class CropOptions(Options):
    """`duoduo.crop`: a square of each image, enlarged, in the place of the whole."""

    size: int = Field(
        208, ge=1, examples=[24], description="side in pixels of the square that is cut out of the model's image"
    )
    training: Literal["random", "centre", "whole"] = Field(
        "random", description="where it lies in training; random = one place for all images of a pass"
    )
    evaluation: Literal["centre", "whole"] = Field("whole", description="where it lies outside of training")


class PrefixCacheOptions(Options):
    """`duoduo.prefix_cache`: each view's tokens before the first block that crosses views."""

    dtype: Literal["float32", "float16"] = Field("float32", description="how tokens are kept")


class TargetOptions(Options):
    """`duoduo.image_target`: the mean image embedding of each object's drawn views, by a model that does not train."""

    embeddings: str | None = Field(
        None, description="tag of stored embeddings of the source; null = a frozen copy of the vision tower"
    )

    def needs(self) -> frozenset[str]:
        """Images, or the stored embeddings."""
        return frozenset({"images"} if self.embeddings is None else {"embeddings"})


class LogScaleOptions(Options):
    """`duoduo.log_scale`: the trained scale that both losses share."""

    start: float = Field(14.28, gt=0, description="the scale, not its logarithm, to start from")


class ContrastOptions(Options):
    """`duoduo.shape_image` and `duoduo.shape_text`."""

    max_scale: float | None = Field(None, gt=0, description="the scale counts as at most this; null = without limit")
