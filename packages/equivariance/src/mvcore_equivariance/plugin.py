"""What 3D-equivariance fine-tuning offers to mvcore."""

from __future__ import annotations

from mvcore.api import EncoderSpec, EvaluatorSpec, LossSpec, RecipeSpec, hookimpl

MVCORE_API = 1

_PAPER = (
    "You et al., Multiview Equivariance Improves 3D Correspondence Understanding with Minimal Feature Finetuning, "
    "ICLR 2025"
)


@hookimpl
def mvcore_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="dense",
            summary="Low-rank weights on q and v of the last vision blocks, and a convolution on the dense map",
            kind="adapter",
            factory="mvcore_equivariance.adapter:DenseAdapter",
            config="mvcore_equivariance.config:DenseAdapterOptions",
            needs={"dense"},
            provides={"dense"},
            citation=_PAPER,
        )
    ]


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="smooth_ap",
            summary="Points of two views that show the same place find each other by their dense features",
            factory="mvcore_equivariance.losses:SmoothAPLoss",
            config="mvcore_equivariance.loss_options:SmoothAPOptions",
            needs={"dense", "cameras", "depth"},
            sampling="pairs",
            scope="object",
            citation=_PAPER,
        )
    ]


@hookimpl
def mvcore_register_evaluators() -> list[EvaluatorSpec]:
    return [
        EvaluatorSpec(
            name="correspondence",
            summary="Does a pixel's feature find the same 3D point in another view, from depth and cameras",
            factory="mvcore_equivariance.evaluation.correspondence:Correspondence",
            config="mvcore_equivariance.evaluation.options:CorrespondenceOptions",
            needs={"dense", "cameras", "depth"},
            citation=_PAPER,
        ),
        EvaluatorSpec(
            name="pose",
            summary="Pose of an object from 2D-3D matches of features and PnP, on OnePose-LowTexture",
            factory="mvcore_equivariance.evaluation.pose:Pose",
            config="mvcore_equivariance.evaluation.options:PoseOptions",
            needs={"dense"},
            own_files=True,
            citation=_PAPER,
        ),
        EvaluatorSpec(
            name="tracking",
            summary="Points followed through videos by their features alone, on TAP-Vid-DAVIS",
            factory="mvcore_equivariance.evaluation.tracking:Tracking",
            config="mvcore_equivariance.evaluation.options:TrackingOptions",
            needs={"dense"},
            own_files=True,
            citation=_PAPER,
        ),
        EvaluatorSpec(
            name="transfer",
            summary="Keypoints carried to another object of the class by their features, on PF-PASCAL",
            factory="mvcore_equivariance.evaluation.transfer:Transfer",
            config="mvcore_equivariance.evaluation.options:TransferOptions",
            needs={"dense"},
            own_files=True,
            citation=_PAPER,
        ),
    ]


@hookimpl
def mvcore_register_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            name="paper",
            summary="3D-equivariance fine-tuning as the paper describes it",
            path="mvcore_equivariance:recipes/paper.yaml",
            default=True,
            citation=_PAPER,
        ),
        RecipeSpec(
            name="released",
            summary="What the authors' released code does",
            path="mvcore_equivariance:recipes/released.yaml",
            importer="mvcore_equivariance.released:released_weights",
            importer_base="mvcore_equivariance.released:released_base",
            citation=_PAPER,
        ),
        RecipeSpec(
            name="demo",
            summary="A small run on the embedded demo set",
            path="mvcore_equivariance:recipes/demo.yaml",
            citation=_PAPER,
        ),
    ]
