"""Options of core's losses. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mvcore.config_base import Options


class PairOptions(Options):
    """Which views and captions count as pairs.

    Args:
        same_caption: what a caption is to the views of another caption with the same words: `positive`, `negative`, or
            `mask` (neither).
        same_object: what an object's other captions are to a view that has its own: `negative` or `mask`.
    """

    same_caption: Literal["positive", "negative", "mask"] = "positive"
    same_object: Literal["negative", "mask"] = "negative"

    def _fields(self) -> frozenset[str]:
        return frozenset({"captions", "object_ids"} if self.same_object == "mask" else {"captions"})


class ItcOptions(PairOptions):
    """Options of `core.itc`.

    Args:
        max_scale: the logit scale (after exp) counts as at most this; null = without limit. CLIP's own limit is 100.
    """

    max_scale: float | None = Field(default=100.0, gt=0)

    def needs(self) -> frozenset[str]:
        """What the loss reads with these options."""
        return self._fields() | {"view", "text", "logit_scale"}


class SiglipOptions(PairOptions):
    """Options of `core.siglip`."""

    def needs(self) -> frozenset[str]:
        """What the loss reads with these options."""
        return self._fields() | {"view", "text", "logit_scale", "logit_bias"}
