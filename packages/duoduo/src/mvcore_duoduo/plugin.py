"""What Duoduo CLIP offers to mvcore."""

from __future__ import annotations

from typing import Any

from mvcore.api import CommandSpec, EncoderSpec, EvaluatorSpec, LossSpec, Problem, RecipeSpec, TrainerSpec, hookimpl

MVCORE_API = 1

_PAPER = "Lee, Chang, Duoduo CLIP: Efficient 3D Understanding with Multi-View Images, ICLR 2025"


@hookimpl
def mvcore_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="cross_view",
            summary="Attention across the views of an object in the upper blocks, without a new parameter",
            kind="adapter",
            factory="mvcore_duoduo.attention:CrossViewAdapter",
            config="mvcore_duoduo.config:CrossViewOptions",
            provides={"object", "duoduo.prefix"},
            axes={"duoduo.prefix": "view"},
            citation=_PAPER,
        ),
        EncoderSpec(
            name="crop",
            summary="A part of each image in the place of the whole, as the released code crops",
            kind="adapter",
            factory="mvcore_duoduo.released:CropAdapter",
            config="mvcore_duoduo.config:CropOptions",
            citation=_PAPER,
        ),
        EncoderSpec(
            name="image_target",
            summary="The mean image embedding of an object's drawn views, by a model that does not train",
            kind="adapter",
            factory="mvcore_duoduo.targets:ImageTargetAdapter",
            config="mvcore_duoduo.config:TargetOptions",
            provides={"duoduo.image_target"},
            axes={"duoduo.image_target": "object"},
            citation=_PAPER,
        ),
        EncoderSpec(
            name="log_scale",
            summary="The trained scale that both contrasts share",
            kind="adapter",
            factory="mvcore_duoduo.scale:LogScaleAdapter",
            config="mvcore_duoduo.config:LogScaleOptions",
            provides={"duoduo.log_scale"},
            axes={"duoduo.log_scale": "none"},
            citation=_PAPER,
        ),
    ]


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="shape_image",
            summary="Contrast of objects with the mean image embedding of their views",
            factory="mvcore_duoduo.losses:ShapeImage",
            config="mvcore_duoduo.config:ContrastOptions",
            needs={"object", "duoduo.image_target", "duoduo.log_scale"},
            citation=_PAPER,
        ),
        LossSpec(
            name="shape_text",
            summary="Contrast of objects with their captions",
            factory="mvcore_duoduo.losses:ShapeText",
            config="mvcore_duoduo.config:ContrastOptions",
            needs={"object", "text", "captions", "duoduo.log_scale"},
            citation=_PAPER,
        ),
    ]


@hookimpl
def mvcore_register_trainers() -> list[TrainerSpec]:
    return [
        TrainerSpec(
            name="prefix_cache",
            summary="Computes each view's tokens below the cross-view blocks once, where nothing there changes",
            factory="mvcore_duoduo.prefix_cache:PrefixCache",
            config="mvcore_duoduo.config:PrefixCacheOptions",
            needs={"images", "duoduo.prefix"},
            provides={"state:duoduo.prefix": "view"},
            indexed=True,
        )
    ]


@hookimpl
def mvcore_register_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            name="paper",
            summary="Duoduo CLIP as the paper describes it",
            path="mvcore_duoduo:recipes/paper.yaml",
            default=True,
            citation=_PAPER,
        ),
        RecipeSpec(
            name="released",
            summary="What the authors' released code does",
            path="mvcore_duoduo:recipes/released.yaml",
            importer="mvcore_duoduo.released:released_weights",
            citation=_PAPER,
        ),
        RecipeSpec(
            name="demo",
            summary="A small run on the embedded demo set",
            path="mvcore_duoduo:recipes/demo.yaml",
        ),
    ]


@hookimpl
def mvcore_register_evaluators() -> list[EvaluatorSpec]:
    return [
        EvaluatorSpec(
            name="view_count",
            summary="Zero-shot accuracy of objects against the number of their views, over several draws of views",
            factory="mvcore_duoduo.evaluation.view_count:ViewCount",
            config="mvcore_duoduo.evaluation.options:ViewCountOptions",
            needs={"view", "text"},
            citation=_PAPER,
        ),
        EvaluatorSpec(
            name="objaverse_lvis",
            summary="duoduo.view_count on Objaverse-LVIS, from its lvis.csv",
            factory="mvcore_duoduo.evaluation.view_count:ObjaverseLVIS",
            config="mvcore_duoduo.evaluation.options:ViewCountOptions",
            needs={"view", "text"},
            citation=_PAPER,
        ),
        EvaluatorSpec(
            name="scanobjectnn",
            summary="duoduo.view_count on renders of ScanObjectNN, among its 15 classes",
            factory="mvcore_duoduo.evaluation.view_count:ScanObjectNN",
            config="mvcore_duoduo.evaluation.options:ScanObjectNNOptions",
            needs={"view", "text"},
            citation=_PAPER,
        ),
        EvaluatorSpec(
            name="mvpnet",
            summary="duoduo.view_count on MVPNet or MVImgNet, from mvpnet_val.csv, guarded against training objects",
            factory="mvcore_duoduo.evaluation.view_count:MVPNet",
            config="mvcore_duoduo.evaluation.options:MVPNetOptions",
            needs={"view", "text"},
            citation=_PAPER,
        ),
        EvaluatorSpec(
            name="text_to_shape",
            summary="Does a text find its shape among all shapes, as Text2Shape measures it",
            factory="mvcore_duoduo.evaluation.text_to_shape:TextToShape",
            config="mvcore_duoduo.evaluation.options:TextToShapeOptions",
            needs={"view", "text"},
            citation=_PAPER,
        ),
    ]


@hookimpl
def mvcore_register_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="duoduo", summary="Draws attention across the views of an object.", factory="mvcore_duoduo.cli:app"
        )
    ]


@hookimpl
def mvcore_check_run(config: Any) -> list[Problem]:
    """Tokens are cached as they are outside of training, and cannot stand for those of other crops."""
    crops = {name: part.args for name, part in config.adapters.items() if part.id == "duoduo.crop"}
    cached = [name for name, part in config.trainers.items() if part.id == "duoduo.prefix_cache"]
    return [
        Problem(
            f"adapters[{name}]: images are cropped otherwise in training than outside of it, where "
            f"trainers[{cached[0]}] makes the tokens; set its training and evaluation alike (centre or "
            "whole), or drop the cache"
        )
        for name, args in crops.items()
        if cached and args.get("training", "random") != args.get("evaluation", "whole")
    ]
