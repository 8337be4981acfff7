"""What mymethod offers to mvcore: specs only, which name their parts as text and import neither torch nor lightning."""

from __future__ import annotations

from mvcore.api import (
    CheckSpec,
    CommandSpec,
    DatasetSpec,
    EncoderSpec,
    EvaluatorSpec,
    LossSpec,
    RecipeSpec,
    TrainerSpec,
    hookimpl,
)

MVCORE_API = 1


@hookimpl
def mvcore_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="projection",
            summary="A learned linear map of each view's vector",
            kind="adapter",
            factory="mymethod.projection:Projection",
            config="mymethod.config:ProjectionOptions",
            needs={"view"},
            provides={"mymethod.projected"},
            axes={"mymethod.projected": "view"},
        )
    ]


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="pull",
            summary="Draws the views of an object to their common direction",
            factory="mymethod.pull:Pull",
            config="mymethod.config:PullOptions",
            needs={"view"},
        ),
        LossSpec(
            name="remember",
            summary="Draws views to what is remembered of their object",
            factory="mymethod.remember:Remember",
            needs={"view", "state:mymethod.memory"},
        ),
    ]


@hookimpl
def mvcore_register_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="blobs",
            summary="Objects of coloured blobs, made on the spot",
            factory="mymethod.blobs:Blobs",
            config="mymethod.config:BlobsOptions",
        )
    ]


@hookimpl
def mvcore_register_trainers() -> list[TrainerSpec]:
    return [
        TrainerSpec(
            name="memory",
            summary="Remembers a moving mean of each object's views",
            factory="mymethod.memory:Memory",
            config="mymethod.config:MemoryOptions",
            needs={"view", "object_ids"},
            provides={"state:mymethod.memory": "object"},
            indexed=True,
        )
    ]


@hookimpl
def mvcore_register_evaluators() -> list[EvaluatorSpec]:
    return [
        EvaluatorSpec(
            name="spread",
            summary="How far the views of an object lie apart",
            factory="mymethod.spread:Spread",
            needs={"view"},
        )
    ]


@hookimpl
def mvcore_register_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            name="demo",
            summary="All of it, on a small model",
            path="mymethod:recipes/demo.yaml",
            default=True,
        )
    ]


@hookimpl
def mvcore_register_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="mymethod",
            summary="Prints what to cite.",
            factory="mymethod.command:cite",
        )
    ]


@hookimpl
def mvcore_register_checks() -> list[CheckSpec]:
    return [
        CheckSpec(
            name="version",
            summary="Which version is installed",
            factory="mymethod.check:version",
        )
    ]
