"""Options of the plugin's parts."""

from __future__ import annotations

from typing import Annotated, Literal

from mvcore.api import Options
from pydantic import Field, StrictInt

Target = Literal["q", "k", "v"]


class LoraOptions(Options):
    """`ovt.lora`: low-rank weights on the attention of every vision block."""

    rank: int = Field(8, ge=1, description="rank of each update")
    alpha: float = Field(8.0, gt=0, description="the update is scaled by alpha / rank")
    targets: tuple[Target, ...] = Field(
        ("q", "k", "v"), min_length=1, description="which projections; neighbours in a fused weight share one factor A"
    )


class ViformerOptions(Options):
    """`ovt.viformer`: the VIFormer after the image encoder."""

    alpha: float = Field(0.1, ge=0, le=1, description="weight of VIFormer's output")
    blend: Literal["paper", "released"] = Field(
        "paper", description="paper: alpha f + (1 - alpha) z; released: z + alpha f"
    )
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1, description="has no effect over one token; the released layout's number")
    feedforward: int = Field(2048, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1, description="the authors' runs had none: their model stays in eval mode")
    init: Literal["released", "identity"] = Field("released", description="identity: the first step changes nothing")


class LogitScaleOptions(Options):
    """`ovt.logit_scale`: a trained logit scale over a frozen model."""

    start: float | None = Field(None, gt=0, description="the scale to start from; null = the model's own")


class ConsistencyOptions(Options):
    """`ovt.vc`: the viewpoint-consistency loss."""

    margin: float = Field(
        0.3, ge=-2, le=2, description="0 or more only adds a constant; a negative one tolerates that cosine distance"
    )


class MiningOptions(Options):
    """`ovt.outlier_mining`: anchors and outlier views."""

    k: int = Field(5, ge=1, description="outlier views an object")
    neighbours: int = Field(5, ge=1, description="views that weigh a view in its object's anchor")
    rule: Literal["inverse_distance", "inverse_similarity", "mean"] = Field(
        "inverse_distance", description="inverse_distance: the paper's intent; inverse_similarity: the released code"
    )
    refresh: Literal["epoch", "bank"] | Annotated[StrictInt, Field(ge=1)] = Field(
        "epoch",
        description="epoch: one pass over the data before each epoch; N: before every N-th step; "
        "bank: one pass at the start, then each epoch from the features of the training steps",
    )
