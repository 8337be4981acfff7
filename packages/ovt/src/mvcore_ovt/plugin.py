"""What Omniview-Tuning offers to mvcore."""

from __future__ import annotations

from mvcore.api import EncoderSpec, LossSpec, RecipeSpec, TrainerSpec, hookimpl

MVCORE_API = 1

_PAPER = "Ruan et al., Omniview-Tuning: Boosting Viewpoint Invariance of Vision-Language Pre-training Models, ECCV 2024"


@hookimpl
def mvcore_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="lora",
            summary="Low-rank weights on the attention of every vision block",
            kind="adapter",
            factory="mvcore_ovt.lora:LoraAdapter",
            config="mvcore_ovt.config:LoraOptions",
            citation=_PAPER,
        ),
        EncoderSpec(
            name="viformer",
            summary="VIFormer: a small transformer that corrects each view's embedding",
            kind="adapter",
            factory="mvcore_ovt.viformer:ViformerAdapter",
            config="mvcore_ovt.config:ViformerOptions",
            needs={"view"},
            provides={"view"},
            citation=_PAPER,
        ),
        EncoderSpec(
            name="logit_scale",
            summary="Trains the logit scale of an otherwise frozen model",
            kind="adapter",
            factory="mvcore_ovt.scale:LogitScaleAdapter",
            config="mvcore_ovt.config:LogitScaleOptions",
            provides={"logit_scale"},
        ),
    ]


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="vc",
            summary="Viewpoint consistency: draws each object's outlier views to its anchor",
            factory="mvcore_ovt.consistency:ViewpointConsistency",
            config="mvcore_ovt.config:ConsistencyOptions",
            needs={"view", "state:ovt.anchors", "state:ovt.outliers"},
            citation=_PAPER,
        )
    ]


@hookimpl
def mvcore_register_trainers() -> list[TrainerSpec]:
    return [
        TrainerSpec(
            name="outlier_mining",
            summary="Finds each object's anchor and its outlier views: once an epoch, every N steps or from a bank",
            factory="mvcore_ovt.mining:OutlierMining",
            config="mvcore_ovt.config:MiningOptions",
            needs={"view"},
            provides={"state:ovt.anchors": "object", "state:ovt.outliers": "view"},
            indexed=True,
            prefers_views=True,
            citation=_PAPER,
        )
    ]


@hookimpl
def mvcore_register_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            name="paper",
            summary="Omniview-Tuning as the paper describes it",
            path="mvcore_ovt:recipes/paper.yaml",
            default=True,
            citation=_PAPER,
        ),
        RecipeSpec(
            name="released",
            summary="What the authors' released code does",
            path="mvcore_ovt:recipes/released.yaml",
            citation=_PAPER,
        ),
        RecipeSpec(
            name="demo",
            summary="A small run on the embedded demo set, in under a minute on two CPU cores",
            path="mvcore_ovt:recipes/demo.yaml",
        ),
    ]
