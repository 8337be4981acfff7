"""Options of the plugin's encoder parts; those of losses and evaluators stand beside these."""

from __future__ import annotations

from typing import Literal

from mvcore.api import Options
from pydantic import Field


class DenseAdapterOptions(Options):
    """`equivariance.dense`: low-rank weights on q and v of the last vision blocks, and a head on the dense map."""

    rank: int = Field(4, ge=1, description="rank of each update; updates are not scaled")
    last_blocks: int = Field(4, ge=1, description="how many vision blocks from the end are tuned")
    head: Literal["conv", "residual", "none"] = Field(
        "conv",
        description="a 3x3 convolution: the authors', random at first; residual: added to the map, 0 at first; or none",
    )
