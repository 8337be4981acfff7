"""Several methods in one run: what an added loss brings with it, and how two recipes become one configuration."""

from __future__ import annotations

import copy
import itertools
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mvcore.config import RunConfig
from mvcore.config_layers import Layers, parse_yaml, to_yaml
from mvcore.errors import ConfigError
from mvcore.plugins import load_plugins
from mvcore.resolution import Request, Resolved, resolve
from mvcore.training.planner import Plan, choose, plan

ALL = frozenset({"images", "captions", "object_ids", "view_ids", "cameras", "depth", "embeddings"})

SHAPES = """
from mvcore.api import *
MVCORE_API = 1

def loss(name, **values):
    return LossSpec(name=name, summary=name, factory="torch.nn:Identity", **values)

def adapter(name, provides, **values):
    axes = {key: "view" for key in provides if "." in key}
    return EncoderSpec(name=name, summary=name, kind="adapter", factory="torch.nn:Identity",
                       config=f"third_{PLUGIN}:Size", provides=provides, axes=axes, **values)

class Size(Options):
    size: int = 1

@hookimpl
def mvcore_register_losses():
    return [loss("whole", needs={"object"}), loss("deep", needs={"shapes.deep", "text"}),
            loss("pairs", needs={"view", "depth"}, sampling="pairs"), loss("far", needs={"view", "depth"}),
            loss("split", needs={"shapes.part"}), loss("lost", needs={"shapes.lost"})]

@hookimpl
def mvcore_register_encoders():
    return [adapter("head", {"shapes.head"}, needs={"view"}), adapter("deep", {"shapes.deep"}, needs={"shapes.head"}),
            adapter("cross", {"object"}), adapter("split", {"view", "shapes.part"}, needs={"view"})]
"""
RECIPES = """
@hookimpl
def mvcore_register_recipes():
    return [RecipeSpec(name=name, summary=name, path=f"third_{PLUGIN}_files:{name}.yaml", default=name == "paper")
            for name in ("paper", "demo", "other")]
"""
PAPER = """
encoder: {id: core.open_clip}
adapters: {shapes.cross: {size: 7}, shapes.head: {size: 8}, shapes.deep: {size: 9}, shapes.split: {size: 6}}
data:
  objects:
    {id: data.views, path: null, sampling: pairs, depth: true, batch_size: 2, image_size: 512, pair_angle: [0, 9]}
losses: {shapes.whole: {}, shapes.pairs: {}, shapes.deep: {}}
"""
BASE = """
encoder: {id: core.open_clip}
data:
  objects: {id: data.views, path: store, split: train, image_size: 32, batch_size: 5}
losses: {core.itc: {}}
"""


def install_plugin(install: Any, name: str, source: str, recipes: dict[str, str]) -> None:
    install.plugin(name, f"PLUGIN = {name!r}\n" + source + (RECIPES if recipes else ""))
    folder = install.folder / f"third_{name}_files"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for recipe, text in recipes.items():
        (folder / f"{recipe}.yaml").write_text(text)


@pytest.fixture
def shapes(install: Any) -> None:
    """A plugin whose recipes have a head, attention across views and pairs of views with depth."""
    other = "losses: {shapes.lost: {}}\nencoder: {id: core.open_clip}\ndata: {objects: {id: data.views}}\n"
    demo = PAPER.replace("size: 7", "size: 2").replace("batch_size: 2", "batch_size: 3")
    install_plugin(install, "shapes", SHAPES, {"paper": PAPER, "demo": demo, "other": other})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    return path


def resolved(**request: Any) -> Resolved:
    return resolve(Request(**request), load_plugins())


def configured(**request: Any) -> RunConfig:
    return resolved(**request).layers.config()


def refused(**request: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(**request)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def planned(config: RunConfig, provides: frozenset[str] = ALL) -> Plan:
    registry = load_plugins()
    return plan(choose(config, registry), {name: SimpleNamespace(provides=provides) for name in config.data}, registry)


def sources(found: Plan) -> dict[str, tuple[str, ...]]:
    return {term.part.name: term.sources for term in (*found.losses, *found.trainers)}


# --- what an added loss brings ----------------------------------------------------------------------------------------


def test_an_added_loss_brings_the_adapter_of_a_feature_that_the_run_lacks(shapes: None, file: Path) -> None:
    found = resolved(file=file, losses=["shapes.whole=0.5"])
    config = found.layers.config()
    assert {name: part.args for name, part in config.adapters.items()} == {"shapes.cross": {"size": 7}}
    assert found.notes == ["adapter shapes.cross from recipe shapes.paper: shapes.whole needs object"]
    printed = to_yaml(found.layers, config).splitlines()
    assert "    size: 7  # recipe shapes.paper, for shapes.whole" in printed


def test_an_added_loss_has_the_options_of_the_recipe_that_it_comes_from() -> None:
    name = "equivariance.smooth_ap"
    found = resolved(plugins=["ovt"], losses=[f"{name}=0.5"])
    part = found.layers.config().losses[name]
    assert (part.weight, part.args) == (0.5, {"points": 256})
    assert f"loss {name} as in recipe equivariance.demo: points: 256" in found.notes
    paper = configured(plugins=["ovt"], recipes=["released"], data="store", losses=[name]).losses[name]
    assert paper.args["sampling"] == "released"
    own = configured(plugins=["ovt"], losses=[name], assignments=[f"losses[{name}].points=9"]).losses[name]
    assert own.args == {"points": 9}


def test_a_loss_that_the_run_has_keeps_its_options(file: Path) -> None:
    name = "equivariance.smooth_ap"
    file.write_text(BASE.replace("losses: {core.itc: {}}", f"losses: {{core.itc: {{}}, {name}: {{points: 9}}}}"))
    part = configured(file=file, losses=[f"{name}=0.5"]).losses[name]
    assert (part.weight, part.args) == (0.5, {"points": 9})


def test_what_an_adapter_needs_comes_too_in_the_recipes_order(shapes: None, file: Path) -> None:
    found = resolved(file=file, losses=["shapes.deep", "shapes.whole"])
    assert list(found.layers.config().adapters) == ["shapes.head", "shapes.deep", "shapes.cross"]
    assert found.notes[:2] == [
        "adapter shapes.head from recipe shapes.paper: shapes.deep needs shapes.head",
        "adapter shapes.deep from recipe shapes.paper: shapes.deep needs shapes.deep",
    ]


def test_a_recipe_of_the_runs_own_kind_is_preferred_and_one_that_has_the_loss_before_all(shapes: None) -> None:
    config = configured(plugins=["ovt"], losses=["shapes.whole", "shapes.lost"])
    assert config.adapters["shapes.cross"].args == {"size": 2}
    assert "shapes.pairs" not in config.losses
    assert configured(plugins=["ovt"], data="s", losses=["shapes.whole"]).adapters["shapes.cross"].args == {"size": 7}


def test_without_a_recipe_the_only_adapter_that_gives_a_feature_is_taken(install: Any, file: Path) -> None:
    install_plugin(install, "shapes", SHAPES, {})
    found = resolved(file=file, losses=["shapes.deep"])
    assert list(found.layers.config().adapters) == ["shapes.head", "shapes.deep"]
    assert "adapter shapes.deep: shapes.deep needs shapes.deep, which no other adapter gives" in found.notes
    assert [part.name for part in planned(found.layers.config()).adapters] == ["shapes.head", "shapes.deep"]


def test_what_would_replace_a_feature_of_the_run_is_not_taken_and_the_refusal_says_how(
    shapes: None, file: Path
) -> None:
    config = configured(file=file, losses=["shapes.split"])
    assert not config.adapters
    with pytest.raises(ConfigError) as caught:
        planned(config)
    assert str(caught.value).endswith("it is given by shapes.split: --set 'adapters[shapes.split]={}'")
    more = configured(file=file, losses=["shapes.split"], assignments=["adapters[shapes.split]={}"])
    assert [part.name for part in planned(more).adapters] == ["shapes.split"]


def test_a_head_of_the_losss_recipe_that_is_left_out_is_told(file: Path) -> None:
    found = resolved(file=file, losses=["mvc_heads.contrastive=0.1"])
    assert found.notes == [
        "loss mvc_heads.contrastive as in recipe mvc_heads.contrastive-paper: similarity_weight: 0.5, normalise: mean, "
        "cross_pairs: figure",
        "adapter mvc_heads.mlp of recipe mvc_heads.contrastive-paper is not taken: the run has view, which it would "
        "replace for every loss (to have it: --set 'adapters[mvc_heads.mlp]={}')",
    ]


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_source_that_draws_pairs_comes_from_the_recipe_on_the_runs_own_data(shapes: None, file: Path) -> None:
    found = resolved(file=file, losses=["shapes.pairs=0.5"])
    config = found.layers.config()
    pairs = config.data["shapes.objects"]
    assert (pairs.sampling, pairs.batch_size, pairs.pair_angle) == ("pairs", 2, (0, 9))
    assert pairs.args == {"path": "store", "split": "train", "image_size": 32, "depth": True}
    assert pairs.readers == ("shapes.pairs",)
    assert found.notes[-1] == (
        "source shapes.objects from recipe shapes.paper on the data of source objects: shapes.pairs needs sampling: "
        "pairs"
    )
    # What was there before reads what it read before.
    assert sources(planned(config)) == {"core.itc": ("objects",), "shapes.pairs": ("shapes.objects",)}


def test_without_a_recipe_the_runs_own_source_is_drawn_otherwise(install: Any, file: Path) -> None:
    install_plugin(install, "shapes", SHAPES, {})
    config = configured(file=file, losses=["shapes.pairs=0.5"])
    pairs = config.data["pairs"]
    assert pairs.args == {"path": "store", "split": "train", "image_size": 32, "depth": True}
    assert (pairs.sampling, pairs.readers) == ("pairs", ("shapes.pairs",))
    assert sources(planned(config))["shapes.pairs"] == ("pairs",)


def test_a_source_that_fits_loads_what_is_needed_and_no_other_is_added(shapes: None, file: Path) -> None:
    found = resolved(file=file, losses=["shapes.far"])
    config = found.layers.config()
    assert list(config.data) == ["objects"]
    assert config.data["objects"].args["depth"] is True
    assert found.notes == ["source objects loads depth: shapes.far needs it"]


def test_a_source_that_leaves_captions_out_is_told_to_load_them(shapes: None, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE.replace("batch_size: 5", "captions: none").replace("core.itc", "shapes.whole"))
    found = resolved(file=path, losses=["core.itc"])
    assert found.layers.config().data["objects"].args["captions"] == "all"
    assert "source objects loads captions: core.itc needs it" in found.notes
    frontal = "captions: none}\n  frontal: {id: data.views, path: store}"
    path.write_text(path.read_text().replace("captions: none}", frontal))
    assert configured(file=path, losses=["core.itc"]).data["objects"].args["captions"] == "none"


def test_a_source_that_was_added_follows_the_run_to_other_data(shapes: None, file: Path) -> None:
    there = ["data[objects].path=elsewhere", "data[shapes.objects].split=test"]
    config = configured(file=file, losses=["shapes.pairs"], assignments=there)
    assert config.data["shapes.objects"].args["path"] == "elsewhere"
    assert config.data["shapes.objects"].args["split"] == "test"


def test_a_second_loss_reads_the_source_that_a_first_one_brought(shapes: None, install: Any, file: Path) -> None:
    install_plugin(install, "more", SHAPES.replace("shapes.", "more."), {})
    config = configured(file=file, losses=["shapes.pairs", "more.pairs"])
    assert set(config.data) == {"objects", "shapes.objects"}
    assert config.data["shapes.objects"].readers == ("shapes.pairs", "more.pairs")


def test_a_loss_that_can_read_the_runs_own_source_leaves_one_that_another_brought_alone(
    shapes: None, file: Path
) -> None:
    config = configured(file=file, losses=["shapes.pairs", "core.siglip"])
    assert config.data["shapes.objects"].readers == ("shapes.pairs",)


def test_a_loss_that_is_no_reader_of_a_source_cannot_be_sent_to_it(file: Path) -> None:
    layers = Layers()
    layers.merge(*parse_yaml(BASE.replace("batch_size: 5", "readers: [ovt.vc]"), "run.yaml"))
    layers.merge(*parse_yaml("losses: {core.itc: {on: [objects]}}", "more.yaml"))
    with pytest.raises(ConfigError) as caught:
        planned(layers.config())
    assert str(caught.value) == (
        "losses[core.itc].on: source 'objects' lacks core.itc among its readers (ovt.vc), which core.itc needs"
    )


# --- several recipes --------------------------------------------------------------------------------------------------

LEFT = """
encoder: {id: core.open_clip}
data: {objects: {id: data.views, path: demo, sampling: views}, frontal: {id: data.views, path: demo, split: test}}
losses: {core.itc: {}, front: {id: core.itc, on: [frontal]}}
optimizer: {lr: 1.0e-3, weight_decay: 0.1}
run: {max_steps: 10}
validate: {on: [core.consistency]}
"""
RIGHT = """
encoder: {id: core.open_clip}
data: {objects: {id: data.views, path: demo, sampling: objects}, frontal: {id: data.views, path: demo, split: test}}
losses: {again: {id: core.itc, on: [objects, frontal]}, front: {id: core.itc, on: [frontal]}}
optimizer: {lr: 2.0e-3, weight_decay: 0.1}
run: {max_steps: 20}
validate: {on: {core.consistency: {}, core.retrieval: {}}}
"""


@pytest.fixture
def two(install: Any) -> None:
    head = "from mvcore.api import *\nMVCORE_API = 1\n"
    for name, text in (("left", LEFT), ("right", RIGHT)):
        data = text.replace("path: demo", "path: null", 1)
        install_plugin(install, name, head, {"demo": text, "paper": data, "other": text})


BOTH = {"plugins": ["left", "right"]}


def test_every_contradiction_is_named_with_both_values_and_both_recipes(two: None) -> None:
    assert refused(**BOTH) == (
        "optimizer.lr is 0.001 in recipe left.demo and 0.002 in recipe right.demo; "
        "run.max_steps is 10 in recipe left.demo and 20 in recipe right.demo; settle each, as --set "
        "'optimizer.lr=0.001' --set 'run.max_steps=10', or in a YAML file; or run one recipe and add the other's "
        "losses, as --recipe left.demo --loss again"
    )
    assert refused(**BOTH, assignments=["optimizer.lr=0.001"]).startswith("run.max_steps is 10 in recipe left.demo and")


@pytest.mark.parametrize("plugins", itertools.permutations(("ovt", "duoduo", "equivariance", "mvc_heads"), 2))
def test_the_ways_out_of_contradictions_can_be_typed(plugins: tuple[str, str]) -> None:
    said = refused(plugins=plugins)
    settings, _, alternative = said.rpartition("run one recipe and add the other's losses, as ")
    flags = shlex.split(alternative)
    assert flags[0] == "--recipe"
    assert set(flags[2::2]) == {"--loss"}
    added = configured(recipes=[flags[1]], losses=flags[3::2])
    planned(added)
    wanted = {loss for name in plugins for loss in configured(plugins=[name]).losses}
    assert wanted == set(added.losses)
    if "settle each" in settings:
        words = shlex.split(settings.partition("settle each, as ")[2].partition(", or in a YAML file")[0])
        assert set(words[::2]) == {"--set"}
        both = configured(plugins=plugins, assignments=words[1::2])
        planned(both)
        assert wanted == set(both.losses)
    else:
        assert "encoder.id is" in settings


def test_a_plugin_that_is_named_twice_counts_once(two: None) -> None:
    assert resolved(plugins=["left", "left"]).notes == ["recipe left.demo"]
    assert configured(plugins=["left", "left"]) == configured(plugins=["left"])


@pytest.mark.parametrize(("plugins", "other"), [(("left", "right"), "right"), (("right", "left"), "left")])
def test_a_loss_of_two_recipes_reads_what_either_gives_it(install: Any, plugins: tuple[str, str], other: str) -> None:
    head = "from mvcore.api import *\nMVCORE_API = 1\n"
    for name, loss, sampling in (("left", "{on: [frontal]}", "views"), ("right", "{}", "objects")):
        data = f"objects: {{id: data.views, path: demo, sampling: {sampling}}}"
        front = ", frontal: {id: data.views, path: demo, split: test}" if name == "left" else ""
        text = f"encoder: {{id: core.open_clip}}\ndata: {{{data}{front}}}\nlosses: {{core.itc: {loss}, "
        text += f"mine-{name}: {{id: core.itc}}}}\n"
        install_plugin(install, name, head, dict.fromkeys(("demo", "paper", "other"), text))
    found = sources(planned(configured(plugins=plugins)))
    right = "right.objects" if other == "right" else "objects"
    left = "left.objects" if other == "left" else "objects"
    assert set(found["core.itc"]) == {"frontal", right}
    assert set(found["mine-left"]) == {left, "frontal"}
    assert found["mine-right"] == (right,)


def test_what_an_adapter_of_one_recipe_changes_for_the_losses_of_another_is_said(shapes: None, install: Any) -> None:
    head = "from mvcore.api import *\nMVCORE_API = 1\n"
    text = "encoder: {id: core.open_clip}\ndata: {objects: {id: data.views, path: demo}}\nlosses: {core.itc: {}}\n"
    install_plugin(install, "plain", head, {"demo": text, "paper": text, "other": text})
    both = {"plugins": ["plain", "shapes"], "data": "demo"}
    note = (
        "adapter shapes.split of recipe shapes.paper replaces view for core.itc too (without it: --set "
        "'adapters[shapes.split]=null')"
    )
    settled = ["data[shapes.objects].image_size=32"]
    assert note in resolved(**both, assignments=settled).notes
    without = resolved(**both, assignments=[*settled, "adapters[shapes.split]=null"])
    assert not any("replaces" in said for said in without.notes)
    assert not any("replaces" in said for said in resolved(plugins=["shapes"], data="demo").notes)


def test_a_later_layer_settles_a_contradiction(two: None, tmp_path: Path) -> None:
    config = configured(**BOTH, assignments=["optimizer.lr=0.001", "run.max_steps=15"])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.run.max_steps) == (0.001, 0.1, 15)
    path = tmp_path / "settled.yaml"
    path.write_text("optimizer: {lr: 3.0e-3}\n")
    assert configured(**BOTH, file=path, data="s", flags={"run": {"max_steps": 7}}).optimizer.lr == 0.003


SETTLED = {**BOTH, "assignments": ["optimizer.lr=0.001", "run.max_steps=15"]}


def test_each_recipe_keeps_to_its_own_sources(two: None) -> None:
    found = resolved(**SETTLED)
    config = found.layers.config()
    assert {name: part.sampling for name, part in config.data.items()} == {
        "objects": "views",
        "frontal": "objects",
        "right.objects": "objects",
    }
    assert found.notes == [
        "recipe left.demo",
        "recipe right.demo",
        "source objects of recipe right.demo is called right.objects, beside another of its name",
    ]
    assert sources(planned(config)) == {
        "core.itc": ("objects", "frontal"),
        "front": ("frontal",),
        "again": ("right.objects", "frontal"),
    }
    assert list(config.validation.on) == ["core.consistency", "core.retrieval"]


def test_ones_own_data_goes_into_the_first_source_of_each_recipe(two: None) -> None:
    config = configured(**SETTLED, data="store#train")
    assert {name: part.args["path"] for name, part in config.data.items()} == {
        "objects": "store",
        "frontal": "demo",
        "right.objects": "store",
    }


def test_a_loss_that_is_added_to_merged_recipes_reads_their_sources(two: None) -> None:
    config = configured(**SETTLED, losses=["ovt.vc=0.5"])
    assert sources(planned(config))["ovt.vc"] == ("objects", "frontal", "right.objects")


def test_what_was_merged_is_the_same_run_when_it_is_printed_and_read(two: None) -> None:
    found = resolved(**SETTLED, losses=["ovt.vc=0.5"])
    config = found.layers.config()
    again = Layers()
    again.merge(*parse_yaml(to_yaml(found.layers, config), "again.yaml"))
    assert again.config() == config
    assert sources(planned(again.config())) == sources(planned(config))


def test_the_recipes_files_are_left_as_they_are(two: None) -> None:
    first = copy.deepcopy(resolved(**SETTLED).layers.values)
    assert resolved(**SETTLED).layers.values == first
