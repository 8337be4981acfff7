"""What 3D-equivariance fine-tuning offers to mvcore."""

from __future__ import annotations

from mvcore.api import EncoderSpec, EvaluatorSpec, hookimpl

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
    ]
