"""Configurations: how layers merge, what is refused and how, and that what is printed runs again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.config import Part, RunConfig, SourcePart, gathered
from mvcore.config_layers import Layers, nested, parse_set, parse_yaml, to_yaml
from mvcore.errors import ConfigError, PluginError
from mvcore.plugins import load_plugins
from mvcore.training.planner import choose

SMALL: dict[str, Any] = {
    "encoder": {"id": "core.open_clip", "model": "ViT-B-32"},
    "data": {"mine": {"id": "data.views", "path": "store"}},
    "losses": {"core.itc": None, "ovt.vc": {"margin": 0.3}},
}


def layers_of(*layers: Mapping[str, Any] | str) -> Layers:
    """Layers of nested values, or of YAML texts as files `0.yaml`, `1.yaml`, ..."""
    merged = Layers()
    for number, layer in enumerate(layers):
        if isinstance(layer, str):
            merged.merge(*parse_yaml(layer, f"{number}.yaml"))
        else:
            merged.merge(layer, f"layer {number}")
    return merged


def refused(*layers: Mapping[str, Any] | str) -> str:
    with pytest.raises(ConfigError) as caught:
        layers_of(*layers).config()
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- merging ----------------------------------------------------------------------------------------------------


def test_later_layers_win_key_by_key_and_keep_what_they_do_not_name():
    config = layers_of(
        SMALL,
        "optimizer: {lr: 1e-3, eps: 1e-8}\nlosses: {ovt.vc: {weight: 2}}",
        {"optimizer": {"lr": 1e-4}},
        nested(*parse_set("losses[ovt.vc].margin=0.1")),
    ).config()
    assert (config.optimizer.lr, config.optimizer.eps, config.optimizer.weight_decay) == (1e-4, 1e-8, 0.05)
    assert (config.losses["ovt.vc"].weight, config.losses["ovt.vc"].args) == (2.0, {"margin": 0.1})


def test_each_key_knows_the_layer_that_set_it():
    layers = layers_of(SMALL, "optimizer:\n  lr: 1e-3\n  eps: 1e-8\n", {"optimizer": {"lr": 1e-4}})
    assert layers.source_of(("optimizer", "lr")) == "layer 2"
    assert layers.source_of(("optimizer", "eps")) == "1.yaml:3"
    assert layers.source_of(("losses", "ovt.vc", "margin")) == "layer 0"
    assert layers.source_of(("run", "seed")) == "default"


def test_a_list_replaces_a_list():
    config = layers_of(SMALL, "optimizer: {betas: [0.9, 0.9]}", "optimizer: {betas: [0.8, 0.7]}").config()
    assert config.optimizer.betas == (0.8, 0.7)


def test_null_removes_a_part_from_below_and_elsewhere_is_a_value():
    layers = layers_of(SMALL, "losses: {core.itc: null, ovt.vc: {margin: null}}\nencoder: {pretrained: null}")
    config = layers.config()
    assert set(config.losses) == {"ovt.vc"}
    assert config.losses["ovt.vc"].args == {"margin": None}
    assert config.encoder.args == {"model": "ViT-B-32", "pretrained": None}
    assert layers.source_of(("losses", "core.itc", "weight")) != "layer 0"


def test_a_section_or_group_of_settings_that_is_null_is_as_if_it_were_not_there():
    config = layers_of(SMALL, "adapters:\ntrainers:\nvalidate:\noptimizer:\nrun:\n").config()
    assert (config.adapters, config.trainers) == ({}, {})
    assert config.optimizer == RunConfig.model_fields["optimizer"].default


def test_an_entry_that_names_another_id_replaces_the_one_below():
    layers = layers_of(SMALL, "losses: {ovt.vc: {id: core.siglip, weight: 3}}\nencoder: {id: other.net}")
    config = layers.config()
    assert config.losses["ovt.vc"].flat() == {"id": "core.siglip", "weight": 3.0}
    assert config.encoder.flat() == {"id": "other.net"}
    assert ("losses", "ovt.vc", "margin") not in layers.sources


def test_an_entry_that_names_the_same_id_is_merged():
    config = layers_of(SMALL, "losses: {ovt.vc: {id: ovt.vc, weight: 3}}").config()
    assert config.losses["ovt.vc"].args == {"margin": 0.3}


def test_measurements_may_be_a_list_of_ids_which_a_later_layer_adds_to_by_name():
    below = {**SMALL, "validate": {"on": ["core.zero_shot", "core.consistency"]}}
    assert list(layers_of(below).config().validation.on) == ["core.zero_shot", "core.consistency"]
    config = layers_of(below, nested(*parse_set("validate.on[core.retrieval].gallery=3"))).config()
    assert list(config.validation.on) == ["core.zero_shot", "core.consistency", "core.retrieval"]
    config = layers_of(below, "validate: {on: [core.retrieval]}").config()
    assert list(config.validation.on) == ["core.retrieval"]


def test_the_layers_leave_what_they_are_given_as_it_was():
    given = {"losses": {"core.itc": {"weight": 1.0}}}
    layers = layers_of(given, {"losses": {"core.itc": {"weight": 2.0}}})
    assert layers.values["losses"]["core.itc"]["weight"] == 2.0
    assert given == {"losses": {"core.itc": {"weight": 1.0}}}


# --- what may stand in it ---------------------------------------------------------------------------------------


def test_ids_default_to_names_and_other_keys_are_the_parts_options():
    config = layers_of(SMALL, "losses: {again: {id: ovt.vc, weight: 0.5, on: [mine], margin: 0.1}}").config()
    assert {name: part.id for name, part in config.losses.items()} == {
        "core.itc": "core.itc",
        "ovt.vc": "ovt.vc",
        "again": "ovt.vc",
    }
    again = config.losses["again"]
    assert (again.weight, again.on, again.args) == (0.5, ("mine",), {"margin": 0.1})


def test_an_option_whose_name_the_section_reserves_stands_under_args():
    config = layers_of(SMALL, "data: {mine: {batch_size: 3, args: {batch_size: 7, split: train}}}").config()
    part = config.data["mine"]
    assert part.batch_size == 3
    assert part.args == {"path": "store", "batch_size": 7, "split": "train"}
    assert type(part).model_validate(gathered(part.flat(), SourcePart)) == part


@pytest.mark.parametrize(
    ("yaml", "line"),
    [
        ("optimiser: {}", "1.yaml:1: optimiser: unknown key, did you mean 'optimizer'?"),
        ("optimizer:\n  lrr: 1", "1.yaml:2: optimizer.lrr: unknown key, did you mean 'lr'?"),
        ("run:\n  seeed: 1", "1.yaml:2: run.seeed: unknown key, did you mean 'seed'?"),
        ("validate:\n  evry: 1", "1.yaml:2: validate.evry: unknown key, did you mean 'every'?"),
        (
            "optimizer:\n  groups:\n  - {match: a, lrr: 1}",
            "1.yaml:2: optimizer.groups[0].lrr: unknown key, did you mean 'lr'?",
        ),
        (
            "run:\n  zzzz: 1",
            "1.yaml:2: run.zzzz: unknown key (known: accelerator, alarm, batch_size, checkpoint_every, devices,",
        ),
        ("optimizer:\n  lr: fast", "1.yaml:2: optimizer.lr: input should be a valid number, got 'fast'"),
        ("optimizer: {lr: -1}", "1.yaml:1: optimizer.lr: input should be greater than 0, got -1"),
        ("optimizer: {lr: '1e-4'}", "1.yaml:1: optimizer.lr: input should be a valid number, got '1e-4'"),
        ("run: {max_steps: '10'}", "1.yaml:1: run.max_steps: input should be a valid integer, got '10'"),
        ("run: {max_steps: 1.5}", "1.yaml:1: run.max_steps: input should be a valid integer"),
        ("run: {seed: true}", "1.yaml:1: run.seed: input should be a valid integer, got True"),
        ("demo: yes", "1.yaml:1: demo: input should be a valid boolean, got 'yes'"),
        ("optimizer: 3", "1.yaml:1: optimizer: "),
        ("losses: [core.itc]", "1.yaml:1: losses: "),
        ("losses: {core.itc: 3}", "1.yaml:1: losses[core.itc]: "),
        ("losses: {core.itc: {weight: heavy}}", "1.yaml:1: losses[core.itc].weight: input should be a valid number"),
        ("losses: {core.itc: {on: mine}}", "1.yaml:1: losses[core.itc].on: input should be a valid "),
        ("losses: {core.itc: {on: []}}", "1.yaml:1: losses[core.itc].on: "),
        ("losses: {core.itc: {args: 3}}", "1.yaml:1: losses[core.itc].args: "),
        ("losses: {core.itc: {id: 3}}", "1.yaml:1: losses[core.itc].id: input should be a valid string, got 3"),
        ("losses:\n  a b: {id: x.y}", "1.yaml:1: losses: 'a b' cannot be a name; use letters, digits, "),
        ("data:\n  ../x: {id: x.y}", "1.yaml:1: data: '../x' cannot be a name"),
        ("validate: {data: {a/b: {id: x.y}}}", "1.yaml:1: validate.data: 'a/b' cannot be a name"),
        ("data:\n  mine:\n    sampling: vews", "1.yaml:3: data.mine.sampling: input should be 'objects', 'views' or"),
        ("data: {mine: {views_per_object: 0}}", "1.yaml:1: data.mine.views_per_object: must be a number of at least 1"),
        ("data: {mine: {views_per_object: [3, 2]}}", "1.yaml:1: data.mine.views_per_object: must be a number of at"),
        (
            "data: {mine: {views_per_object: all}}",
            "1.yaml:1: data.mine.views_per_object: input should be a valid integer or a valid array, got 'all'",
        ),
        ("run: {micro_batch: 0}", "1.yaml:1: run.micro_batch: must be 'auto' or at least 1"),
        ("data: {other: {path: x}}", "1.yaml:1: data.other.id: is missing"),
        ("data: {mine: null}", "data: no source; name at least one"),
        ("losses: {core.itc: null, ovt.vc: null}", "losses: no loss; name at least one"),
        ("encoder: null", "1.yaml:1: encoder: "),
        ("plugins: ovt", "1.yaml:1: plugins: input should be a valid "),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_key_and_place(yaml, line):
    assert refused(SMALL, yaml).startswith(line)


def test_what_must_be_there():
    assert refused("run: {seed: 1}") == "encoder: is missing; data: is missing; losses: is missing"


def test_all_faults_are_told_at_once():
    assert refused(SMALL, "run:\n  seed: -1\noptimizer:\n  lr: no\n") == (
        "1.yaml:4: optimizer.lr: input should be a valid number, got 'no'; "
        "1.yaml:2: run.seed: input should be greater than or equal to 0, got -1"
    )


# --- options of parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "error", "line"),
    [
        (
            "losses:\n  ovt.vc:\n    marign: 1",
            ConfigError,
            "1.yaml:3: losses[ovt.vc].marign: unknown key, did you mean 'margin'?",
        ),
        (
            "losses:\n  ovt.vc:\n    wieght: 1",
            ConfigError,
            "1.yaml:3: losses[ovt.vc].wieght: unknown key, did you mean 'weight'?",
        ),
        (
            "data:\n  mine: {bach_size: 1}",
            ConfigError,
            "1.yaml:2: data.mine.bach_size: unknown key, did you mean 'batch_size'?",
        ),
        (
            "losses: {ovt.vc: {margin: wide}}",
            ConfigError,
            "1.yaml:1: losses[ovt.vc].margin: input should be a valid number, got 'wide'",
        ),
        (
            "encoder:\n  dense: {layr: 1}",
            ConfigError,
            "1.yaml:2: encoder.dense.layr: unknown key, did you mean 'layer'?",
        ),
        ("losses:\n  ovt.vx: {}", PluginError, "1.yaml:2: losses[ovt.vx].id: unknown loss 'ovt.vx', did you mean"),
        ("encoder:\n  id: core.clip", PluginError, "1.yaml:2: encoder.id: unknown encoder 'core.clip', did you mean"),
        (
            "losses: {ovt.lora: {}}",
            PluginError,
            "1.yaml:1: losses[ovt.lora].id: 'ovt.lora' is no loss: it is an encoder",
        ),
        ("adapters: {core.open_clip: {}}", ConfigError, "1.yaml:1: adapters[core.open_clip].id: core.open_clip is a b"),
        (
            "encoder: {id: ovt.lora}",
            ConfigError,
            "1.yaml:1: encoder.id: ovt.lora is an adapter; name it under",
        ),
    ],
)
def test_a_parts_id_and_options_are_checked_with_their_place(yaml, error, line):
    layers = layers_of(SMALL, yaml)
    with pytest.raises(error) as caught:
        choose(layers.config(), load_plugins(), layers.written)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_options_of_unknown_origin_name_no_place():
    with pytest.raises(ConfigError, match=r"^losses\[ovt\.vc\]\.marign: unknown key"):
        choose(layers_of(SMALL, {"losses": {"ovt.vc": {"marign": 1}}}).config(), load_plugins())


# --- printing ---------------------------------------------------------------------------------------------------


def test_each_printed_line_ends_with_its_source():
    layers = layers_of(
        SMALL,
        "optimizer:\n  lr: 1e-3\nvalidate:\n  on: [core.zero_shot]\n",
        nested(*parse_set("run.seed=3")),
    )
    text = to_yaml(layers, layers.config())
    for line in (
        "  model: ViT-B-32  # layer 0",
        "    margin: 0.3  # layer 0",
        "  lr: 0.001  # 1.yaml:2",
        "  eps: 1.0e-06  # default",
        "  seed: 3  # layer 2",
        "      id: core.zero_shot  # 1.yaml:4",
    ):
        assert line in text.splitlines()
    assert all("  # " in line or line.endswith(":") for line in text.splitlines())


WORDS = st.one_of(
    st.sampled_from(
        [
            "on",
            "1e-4",
            "null",
            "no",
            "12",
            "0x1F",
            "1:30",
            "a # b",
            "a: b",
            "",
            " x",
            "a\nb",
            "a\u2028b",
            "\xa0",
            "2024-01-01",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8),
)
NAMES = st.from_regex(r"\w[\w.-]{0,7}", fullmatch=True)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS.filter(bool), inner, max_size=3)),
    max_leaves=5,
)
ARGS = st.dictionaries(NAMES.filter(lambda name: name not in Part.model_fields), PLAIN, max_size=3)


SCHEDULES = st.fixed_dictionaries(
    {"schedule": st.sampled_from(["linear", "cosine"]), "to": st.floats(0, 2), "start": st.integers(0, 9)},
    optional={"from": st.floats(0, 2), "steps": st.integers(1, 9), "warmup": st.integers(0, 9)},
)


@st.composite
def configurations(draw: st.DrawFn) -> RunConfig:
    """Any parts with any plain options, and some settings."""
    on = st.none() | st.lists(NAMES, min_size=1, max_size=2)
    data = draw(st.dictionaries(NAMES, ARGS, min_size=1, max_size=2))
    losses = draw(st.dictionaries(NAMES, st.tuples(ARGS, st.floats(0, 2) | SCHEDULES, on), min_size=1, max_size=2))
    values = {
        "plugins": draw(st.lists(WORDS, max_size=2)),
        "control": draw(st.booleans()),
        "encoder": {"id": draw(WORDS), "args": draw(ARGS)},
        "adapters": {name: {"args": args} for name, args in draw(st.dictionaries(NAMES, ARGS, max_size=2)).items()},
        "data": {name: {"id": "data.views", "args": args, "batch_size": 3} for name, args in data.items()},
        "losses": {name: {"args": args, "weight": weight, "on": on} for name, (args, weight, on) in losses.items()},
        "optimizer": {
            "lr": draw(st.floats(1e-12, 1e3)),
            "clip_norm": draw(st.none() | st.floats(0.1, 10)),
            "groups": draw(st.lists(st.fixed_dictionaries({"match": WORDS}), max_size=2)),
        },
        "run": {"seed": draw(st.integers(0, 9)), "output": draw(st.none() | WORDS)},
        "validate": {"on": draw(st.lists(NAMES, max_size=2, unique=True)), "best": draw(st.none() | WORDS)},
    }
    layers = Layers()
    layers.merge(values, "any")
    return layers.config()


@given(configurations())
@settings(max_examples=60, deadline=None)
def test_what_is_printed_is_the_same_configuration_again(config):
    layers = Layers()
    layers.merge(config.to_plain(), "run.yaml:1")
    again = Layers()
    again.merge(*parse_yaml(to_yaml(layers, config), "again.yaml"))
    assert again.config() == config
