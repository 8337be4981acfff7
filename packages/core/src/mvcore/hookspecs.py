"""The hooks that a plugin may implement: pluggy specifications, each with a complete small example.

A plugin is a module with `MVCORE_API = 1` and functions marked with `mvcore.api.hookimpl`, named by an entry point:

    [project.entry-points.mvcore]
    mymethod = "mymethod.plugin"

Registration hooks take no argument, return lists of specs and are pure: they may be called any number of times and must
import neither torch nor lightning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from mvcore.config import RunConfig
    from mvcore.specs import (
        CheckSpec,
        CommandSpec,
        DatasetSpec,
        EncoderSpec,
        EvaluatorSpec,
        LossSpec,
        Problem,
        RecipeSpec,
        Section,
        TrainerSpec,
    )
    from mvcore.training.planner import Plan

hookspec = pluggy.HookspecMarker("mvcore")
hookimpl = pluggy.HookimplMarker("mvcore")


@hookspec
def mvcore_register_encoders() -> Iterable[EncoderSpec]:
    """Backbones and adapters.

    @hookimpl
    def mvcore_register_encoders():
        return [EncoderSpec(name="whiten", summary="Whitens view features", kind="adapter",
                            factory="mymethod.whiten:Whiten", needs={"view"}, provides={"view"})]
    """
    yield from ()


@hookspec
def mvcore_register_losses() -> Iterable[LossSpec]:
    """Losses.

    @hookimpl
    def mvcore_register_losses():
        return [LossSpec(name="triplet", summary="Triplet loss over views of an object",
                         factory="mymethod.triplet:Triplet", config="mymethod.config:TripletConfig", needs={"view"})]
    """
    yield from ()


@hookspec
def mvcore_register_datasets() -> Iterable[DatasetSpec]:
    """Data sources.

    @hookimpl
    def mvcore_register_datasets():
        return [DatasetSpec(name="tar", summary="Views from tar shards", factory="mymethod.tar:TarViews",
                            config="mymethod.config:TarConfig")]
    """
    yield from ()


@hookspec
def mvcore_register_trainers() -> Iterable[TrainerSpec]:
    """Trainers: Lightning callbacks that may publish state.

    @hookimpl
    def mvcore_register_trainers():
        return [TrainerSpec(name="bank", summary="Rolling bank of embeddings", factory="mymethod.bank:Bank",
                            needs={"view"}, provides={"state:mymethod.bank": "none"})]
    """
    yield from ()


@hookspec
def mvcore_register_evaluators() -> Iterable[EvaluatorSpec]:
    """Measurements.

    @hookimpl
    def mvcore_register_evaluators():
        return [EvaluatorSpec(name="spread", summary="Spread of an object's views", factory="mymethod.spread:Spread",
                              needs={"view"})]
    """
    yield from ()


@hookspec
def mvcore_register_recipes() -> Iterable[RecipeSpec]:
    """Run configurations.

    @hookimpl
    def mvcore_register_recipes():
        return [RecipeSpec(name="paper", summary="As the paper says", path="mymethod:recipes/paper.yaml", default=True)]
    """
    yield from ()


@hookspec
def mvcore_register_commands() -> Iterable[CommandSpec]:
    """Commands of the `mvcore` program.

    @hookimpl
    def mvcore_register_commands():
        return [CommandSpec(name="fetch", summary="Fetches the data", factory="mymethod.fetch:fetch")]
    """
    yield from ()


@hookspec
def mvcore_register_checks() -> Iterable[CheckSpec]:
    """Checks of `mvcore doctor`.

    @hookimpl
    def mvcore_register_checks():
        return [CheckSpec(name="licence", summary="The licence key is set", factory="mymethod.checks:licence")]
    """
    yield from ()


@hookspec
def mvcore_check_run(config: RunConfig, plan: Plan) -> Iterable[Problem]:
    """What is wrong with a run, asked of the plugins that it uses before any weight is loaded.

    @hookimpl
    def mvcore_check_run(config):
        if config.run.precision == "16-mixed":
            return [Problem("mymethod overflows in float16; use bf16-mixed")]
        return []
    """
    yield from ()


@hookspec
def mvcore_report_sections(run: Any, results: Mapping[str, Any]) -> Iterable[Section]:
    """Sections for the report of a finished run, asked of the plugins that it used.

    @hookimpl
    def mvcore_report_sections(results):
        return [Section("My method", f"{len(results)} tables")]
    """
    yield from ()


REGISTRATION_HOOKS: Mapping[str, str] = {
    "mvcore_register_encoders": "encoder",
    "mvcore_register_losses": "loss",
    "mvcore_register_datasets": "dataset",
    "mvcore_register_trainers": "trainer",
    "mvcore_register_evaluators": "evaluator",
    "mvcore_register_recipes": "recipe",
    "mvcore_register_commands": "command",
    "mvcore_register_checks": "check",
}
"""Each registration hook and the kind of spec that it returns."""
