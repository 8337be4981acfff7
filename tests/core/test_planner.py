"""Who reads what: sources of losses and trainers, the adapters in use, and what is refused before a weight loads."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from mvcore.config_layers import Layers, parse_yaml
from mvcore.encoders.open_clip import OpenClip
from mvcore.errors import ConfigError
from mvcore.plugins import load_plugins
from mvcore.training.planner import Plan, choose, plan

ALL = frozenset({"images", "captions", "object_ids", "view_ids", "cameras"})

PARTS = """
from mvcore.api import *
MVCORE_API = 1

def loss(name, **values):
    return LossSpec(name=name, summary=name, factory="torch.nn:Identity", **values)

def adapter(name, **values):
    return EncoderSpec(name=name, summary=name, kind="adapter", factory="torch.nn:Identity", **values)

@hookimpl
def mvcore_register_losses():
    return [loss("view", needs={"view"}), loss("pairs", needs={"view"}, sampling="pairs"),
            loss("posed", needs={"view", "cameras"}), loss("shape", needs={"object"}),
            loss("head", needs={"parts.head"}), loss("bank", needs={"view", "state:parts.bank"}),
            loss("deep", needs={"parts.deep"}), loss("lost", needs={"parts.nowhere"}),
            loss("orphan", needs={"state:parts.nothing"})]

@hookimpl
def mvcore_register_encoders():
    return [adapter("head", needs={"view"}, provides={"parts.head"}, axes={"parts.head": "view"}),
            adapter("deep", needs={"parts.head", "depth"}, provides={"parts.deep"}, axes={"parts.deep": "view"}),
            adapter("whiten", needs={"view"}, provides={"view"}),
            adapter("tune")]

@hookimpl
def mvcore_register_trainers():
    return [TrainerSpec(name="bank", summary="B", factory="torch.nn:Identity", needs={"view"}, indexed=True,
                        provides={"state:parts.bank": "view"}),
            TrainerSpec(name="one", summary="1", factory="torch.nn:Identity", replaces_step=True),
            TrainerSpec(name="two", summary="2", factory="torch.nn:Identity", replaces_step=True)]
"""


@pytest.fixture(autouse=True)
def parts(install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin `parts`; nothing here may build an encoder."""
    install.plugin("parts", PARTS)

    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was built while planning")

    monkeypatch.setattr(OpenClip, "__init__", built)


def planned(yaml: str, provides: Mapping[str, frozenset[str]] | None = None) -> Plan:
    """The plan of a run; `provides` says what the opened sources have (default: one source `mine` with all)."""
    provides = provides or {"mine": ALL}
    layers = Layers()
    data = {name: {"id": "data.views", "path": "store"} for name in provides}
    layers.merge({"encoder": {"id": "core.open_clip"}, "data": data}, "base")
    layers.merge(*parse_yaml(yaml, "run.yaml"))
    registry = load_plugins()
    blueprint = choose(layers.config(), registry, layers.written)
    return plan(blueprint, {name: SimpleNamespace(provides=has) for name, has in provides.items()}, registry)


def refused(yaml: str, provides: Mapping[str, frozenset[str]] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        planned(yaml, provides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sources(found: Plan) -> dict[str, tuple[str, ...]]:
    return {term.part.name: term.sources for term in (*found.losses, *found.trainers)}


# --- sources ----------------------------------------------------------------------------------------------------


def test_by_default_a_loss_works_on_every_source_that_has_what_it_needs():
    has = {"texts": ALL, "bare": ALL - {"captions"}, "posed": ALL - {"captions"}}
    has["bare"] -= {"cameras"}
    found = planned("losses: {core.itc: , parts.view: , parts.posed: }", has)
    assert sources(found) == {
        "core.itc": ("texts",),
        "parts.view": ("texts", "bare", "posed"),
        "parts.posed": ("texts", "posed"),
    }
    assert found.keys == {
        "texts": {"view", "text", "logit_scale"},
        "bare": {"view"},
        "posed": {"view"},
    }


def test_a_loss_with_a_sampling_of_its_own_takes_the_sources_that_draw_so():
    yaml = "data: {b: {sampling: pairs}}\nlosses: {parts.pairs: , parts.view: }"
    assert sources(planned(yaml, {"a": ALL, "b": ALL}))["parts.pairs"] == ("b",)
    assert refused("losses: {parts.pairs: }") == (
        "run.yaml:1: losses[parts.pairs]: no source of this run has what parts.pairs needs: mine lacks sampling: pairs"
    )


def test_on_names_the_sources():
    found = planned("losses: {parts.view: {on: [b, b]}, core.itc: {on: [a]}}", {"a": ALL, "b": ALL})
    assert sources(found) == {"parts.view": ("b",), "core.itc": ("a",)}


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        (
            "losses:\n  core.itc:\n    on: [bear]",
            "run.yaml:3: losses[core.itc].on: 'bear' is no source of this run, did you mean 'bare'? (there are: bare,",
        ),
        (
            "losses:\n  core.itc:\n    on: [bare]",
            "run.yaml:3: losses[core.itc].on: source 'bare' lacks captions, which core.itc needs",
        ),
        (
            "losses: {parts.bank: }\ntrainers:\n  parts.bank:\n    on: [mnie]",
            "run.yaml:4: trainers[parts.bank].on: 'mnie' is no source of this run, did you mean 'mine'?",
        ),
    ],
)
def test_on_is_checked(yaml, text):
    assert refused(yaml, {"mine": ALL, "bare": ALL - {"captions"}}).startswith(text)


def test_a_store_without_captions_for_a_loss_that_needs_text():
    assert refused("losses:\n  core.itc:", {"mine": ALL - {"captions"}}) == (
        "run.yaml:2: losses[core.itc]: no source of this run has what core.itc needs: mine lacks captions"
    )


def test_what_an_adapter_on_the_way_reads_must_be_there_too():
    yaml = "adapters: {parts.head: , parts.deep: }\nlosses: {parts.deep: , parts.view: }"
    found = planned(yaml, {"maps": ALL | {"depth"}, "flat": ALL})
    assert sources(found) == {"parts.deep": ("maps",), "parts.view": ("maps", "flat")}
    assert refused(yaml, {"flat": ALL}).endswith("has what parts.deep needs: flat lacks depth")
    assert refused("losses: {parts.view: }", {"mine": frozenset()}).endswith("mine lacks images")


def test_a_source_that_no_loss_reads_is_refused():
    assert refused("data:\n  b: {batch_size: 2}\nlosses: {parts.view: {on: [a]}}", {"a": ALL, "b": ALL}) == (
        "run.yaml:2: data.b: no loss reads this source; drop it (--set 'data[b]=null'), or name it in a loss's `on`"
    )


# --- weights ----------------------------------------------------------------------------------------------------


def test_a_loss_of_weight_0_is_left_out_with_what_only_it_needs_and_its_source_stays():
    yaml = (
        "adapters: {parts.head: }\ntrainers: {parts.bank: }\n"
        "losses: {core.itc: {weight: 0.5, on: [a]}, parts.bank: {weight: 0, on: [b]}, parts.head: {weight: 0}}"
    )
    found = planned(yaml, {"a": ALL, "b": ALL})
    assert [(term.part.name, term.weight) for term in found.losses] == [("core.itc", 0.5)]
    assert (found.trainers, found.adapters) == ((), ())
    assert found.keys["b"] == frozenset()


def test_a_run_whose_losses_all_weigh_0_is_refused():
    assert refused("losses: {core.itc: {weight: 0}}") == "every loss has weight 0, so there is nothing to train"


# --- adapters ---------------------------------------------------------------------------------------------------


def test_adapters_that_nobody_wants_are_skipped_and_those_that_act_in_place_stay():
    yaml = "adapters: {parts.tune: , parts.head: , parts.whiten: }\n"
    names = lambda found: [part.name for part in found.adapters]  # noqa: E731
    assert names(planned(yaml + "losses: {parts.view: }")) == ["parts.tune", "parts.whiten"]
    assert names(planned(yaml + "losses: {parts.head: }")) == ["parts.tune", "parts.head"]
    chain = "adapters: {parts.whiten: , parts.head: , parts.deep: }\nlosses: {parts.deep: }"
    assert names(planned(chain, {"a": ALL | {"depth"}})) == ["parts.whiten", "parts.head", "parts.deep"]


def test_what_only_an_evaluator_reads_is_kept_and_not_computed_while_training():
    yaml = "losses: {parts.view: }\nvalidate: {on: [core.zero_shot], data: {t: {id: data.views, path: s}}}"
    assert planned(yaml).keys == {"mine": {"view"}}


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        (
            "losses:\n  parts.head:",
            "run.yaml:2: losses[parts.head]: parts.head needs the feature 'parts.head', which core.open_clip lacks (it "
            "gives dense, logit_scale, text, view); it is given by parts.head",
        ),
        (
            "adapters:\n  parts.deep:\nlosses: {parts.deep: }",
            "run.yaml:2: adapters[parts.deep]: parts.deep needs the feature 'parts.head', which core.open_clip lacks",
        ),
        # An adapter stands after the one that reads it.
        (
            "adapters:\n  parts.deep:\n  parts.head:\nlosses: {parts.deep: }",
            "run.yaml:2: adapters[parts.deep]: parts.deep needs the feature 'parts.head', which core.open_clip lacks",
        ),
        ("losses: {parts.lost: }", "run.yaml:1: losses[parts.lost]: parts.lost needs the feature 'parts.nowhere', wh"),
    ],
)
def test_a_feature_that_nothing_gives_names_who_reads_it_and_who_could_give_it(yaml, text):
    found = refused(yaml, {"mine": ALL | {"depth"}})
    assert found.startswith(text)
    assert ("; no installed plugin gives it" in found) == ("nowhere" in found)


# --- trainers ---------------------------------------------------------------------------------------------------


def test_a_trainer_works_where_it_can_and_its_losses_stay_with_it():
    has = {"a": ALL, "stream": ALL - {"object_ids"}}
    found = planned("trainers: {parts.bank: }\nlosses: {parts.bank: , parts.view: }", has)
    assert sources(found) == {"parts.bank": ("a",), "parts.view": ("a", "stream")}
    found = planned("trainers: {parts.bank: {on: [b]}}\nlosses: {parts.bank: , core.itc: }", {"a": ALL, "b": ALL})
    assert sources(found)["parts.bank"] == ("b",)


def test_a_trainer_whose_state_nobody_reads_is_left_out():
    assert planned("trainers: {parts.bank: }\nlosses: {parts.view: }").trainers == ()


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        (
            "losses:\n  parts.bank:",
            "run.yaml:2: losses[parts.bank]: parts.bank needs state:parts.bank, which no trainer of this run "
            "publishes; parts.bank publishes it: name it under trainers",
        ),
        (
            "losses:\n  parts.orphan:",
            "run.yaml:2: losses[parts.orphan]: parts.orphan needs state:parts.nothing, which no trainer of this run "
            "publishes",
        ),
        (
            "trainers: {parts.bank: {on: [a]}}\nlosses:\n  parts.bank: {on: [b]}\n  core.itc:",
            "run.yaml:3: losses[parts.bank].on: source 'b' lacks state:parts.bank (trainer parts.bank does not work on "
            "it), which parts.bank needs",
        ),
        (
            "trainers:\n  parts.one:\n  parts.two:\nlosses: {parts.view: }",
            "run.yaml:3: trainers[parts.two]: it replaces the training step, as trainers[parts.one] does; keep one",
        ),
    ],
)
def test_state_that_is_not_published(yaml, text):
    assert refused(yaml, {"a": ALL, "b": ALL}) == text


def test_a_trainer_that_mines_needs_ids():
    yaml = "trainers:\n  parts.bank:\nlosses: {parts.bank: }"
    assert refused(yaml, {"stream": ALL - {"object_ids"}}) == (
        "run.yaml:2: trainers[parts.bank]: no source of this run has what parts.bank needs: stream lacks object_ids"
    )


def test_the_plan_knows_its_plugins():
    found = planned("adapters: {ovt.lora: }\nlosses: {parts.view: }")
    assert found.blueprint.plugins == {"core", "data", "ovt", "parts"}
