"""The options of the parts: each field is a key in a run's YAML, checked before anything is loaded."""

from __future__ import annotations

from mvcore.api import Options
from pydantic import Field


class ProjectionOptions(Options):
    """`mymethod.projection`."""

    width: int = Field(8, ge=1, description="dimensions of the projected vectors")


class PullOptions(Options):
    """`mymethod.pull`."""

    power: float = Field(1.0, gt=0, description="of each view's cosine distance")


class MemoryOptions(Options):
    """`mymethod.memory`."""

    momentum: float = Field(0.9, ge=0, lt=1, description="share of what is remembered that a step keeps")


class BlobsOptions(Options):
    """`mymethod.blobs`."""

    objects: int = Field(8, ge=1, description="how many there are")
    views: int = Field(4, ge=1, description="views of each")
    image_size: int = Field(32, ge=8, description="side of the images in pixels")
