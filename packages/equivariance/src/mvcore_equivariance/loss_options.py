"""Options of the plugin's loss."""

from __future__ import annotations

from typing import Literal

from mvcore.api import Options
from pydantic import Field, model_validator


class SmoothAPOptions(Options):
    """`equivariance.smooth_ap`: points of two views that show the same place find each other among all others."""

    sampling: Literal["projected", "released", "tracks"] = Field(
        "projected",
        description="projected: points of the first view, each with its place in the second, where it is seen there; "
        "released: points of both views by themselves, which match where they are near, as the authors draw; tracks: "
        "points of a reconstruction, each with where the second view shows the same one; needs no depth",
    )
    points: int = Field(3000, ge=1, description="points drawn in the first view; with released, in each")
    further: int | None = Field(
        None,
        ge=0,
        description="with projected and tracks, points of the second view beside those, as negatives; null = points",
    )
    form: Literal["one_positive", "several_positives", "info_nce", "procrustes"] = Field(
        "one_positive",
        description="one_positive: the authors' Smooth-AP, each positive by itself; several_positives: all positives "
        "of a point ranked together; info_nce: cross entropy; procrustes: the rigid motion that soft matches give",
    )
    symmetric: bool = Field(False, description="mean of both directions; the authors go from first to second alone")
    positive: float = Field(
        5e-3, gt=0, description="distance in space below which points are the same; tracks say it themselves"
    )
    negative: float = Field(0.1, gt=0, description="distance above which they are others; between, neither")
    unit: Literal["extent", "store", "footprint"] = Field(
        "extent",
        description="of both distances. extent: the longest side of what the two views show of the object; store: the "
        "store's own unit, as the authors' meshes of longest side 1 have it; footprint: what a pixel covers there",
    )
    tau: float | None = Field(None, gt=0, description="temperature; null = 0.01, and 0.07 for info_nce and procrustes")
    masks: bool = Field(
        False, description="foreground is what has depth, or tracks, and lies in the mask; else all of that"
    )

    def needs(self) -> frozenset[str]:
        """The dense map, and what tells where its pixels are in space."""
        geometry = {"cameras", "depth"}
        if self.sampling == "tracks":
            geometry = {"tracks", "images"} | ({"cameras"} if self.unit == "footprint" else set[str]())
        return frozenset({"dense"} | geometry | ({"masks"} if self.masks else set()))

    @model_validator(mode="after")
    def _fits_together(self) -> SmoothAPOptions:
        if self.positive > self.negative:
            raise ValueError(f"positive ({self.positive:g}) must not be above negative ({self.negative:g})")
        if self.form == "procrustes" and self.sampling == "released":
            raise ValueError("form: procrustes needs points that both views see; set sampling to projected")
        if self.form == "several_positives" and self.sampling == "tracks":
            raise ValueError("form: several_positives goes by distance, tracks by ids; take another form")
        if self.further is not None and self.sampling == "released":
            raise ValueError("further is for projected and tracks; released draws the same number in both views")
        return self
