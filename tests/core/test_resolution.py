"""From flags to one configuration: plugins and their recipes, data, encoders, losses, and what each decision says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mvcore.config import RunConfig
from mvcore.errors import ConfigError, MvcoreError, PluginError
from mvcore.plugins import load_plugins
from mvcore.resolution import Request, Resolved, resolve, use_plugin
from mvcore.training.planner import choose

HEAD = "from mvcore.api import *\nMVCORE_API = 1\n"
PULL = HEAD + (
    "@hookimpl\ndef mvcore_register_losses():\n"
    "    return [LossSpec(name='pull', summary='Pulls', factory='torch.nn:Identity', needs={'view'})]\n"
)
CLIP = HEAD + (
    "@hookimpl\ndef mvcore_register_encoders():\n"
    "    return [EncoderSpec(name='clip', summary='Own', factory='torch.nn:Identity', provides={'view'})]\n"
)
RECIPES = HEAD + (
    "@hookimpl\ndef mvcore_register_recipes():\n"
    "    return [RecipeSpec(name='demo', summary='D', path='third_{name}_files:demo.yaml'),\n"
    "            RecipeSpec(name='paper', summary='P', path='third_{name}_files:paper.yaml', default=True)]\n"
)


def resolved(**request: Any) -> Resolved:
    return resolve(Request(**request), load_plugins())


def configured(**request: Any) -> RunConfig:
    return resolved(**request).layers.config()


def refused(error: type[MvcoreError] = ConfigError, **request: Any) -> str:
    with pytest.raises(error) as caught:
        configured(**request)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        "encoder: {id: core.open_clip}\n"
        "data: {mine: {id: data.views, path: store}, other: {id: data.views, path: null}}\n"
        "losses: {core.itc: {on: [mine, other]}, again: {id: core.siglip, weight: 2}}\n"
    )
    return path


# --- which recipe -----------------------------------------------------------------------------------------------


def test_a_plugin_alone_is_its_demo_and_with_data_or_an_encoder_its_default_recipe():
    assert configured(plugins=["ovt"]).demo
    assert resolved(plugins=["ovt"]).notes == ["recipe ovt.demo"]
    for request in ({"data": "store"}, {"encoder": "ViT-B-16", "data": "store"}):
        found = resolved(plugins=["ovt"], **request)
        assert found.notes[0] == "recipe ovt.paper"
        assert not found.layers.config().demo


def test_recipes_by_name():
    assert resolved(recipes=["core.pretrain"], data="store").notes == ["recipe core.pretrain"]
    assert resolved(plugins=["ovt"], recipes=["released"], data="s").notes[0] == "recipe ovt.released"
    assert refused(recipes=["paper"]).startswith("--recipe paper: say whose it is, as --recipe ovt.paper")
    assert refused(PluginError, recipes=["ovt.papre"]).startswith(
        "plugin 'ovt' has no recipe 'papre', did you mean 'pap"
    )
    assert refused(PluginError, recipes=["otv.paper"]).startswith("unknown plugin 'otv', did you mean 'ovt'?")


def test_recipes_of_several_plugins_by_name(install):
    for name in ("left", "right"):
        install.plugin(name, RECIPES.replace("{name}", name))
        folder = install.folder / f"third_{name}_files"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for recipe in ("demo", "paper"):
            data = f"data: {{{name}: {{id: data.views, path: demo}}}}"
            text = f"encoder: {{id: core.open_clip}}\n{data}\nlosses: {{core.itc: {{}}}}\n"
            (folder / f"{recipe}.yaml").write_text(text)
    install.plugin("parts", PULL)
    three = ["left", "right", "parts"]
    assert resolved(plugins=three, recipes=["paper"]).notes == ["recipe left.paper", "recipe right.paper"]
    both = resolved(plugins=three, recipes=["left.demo", "right.paper", "left.demo"]).notes
    assert both == ["recipe left.demo", "recipe right.paper"]
    one = resolved(plugins=three, recipes=["left.paper"]).notes
    assert one == ["plugin right: none of its recipes is followed (--recipe names others)", "recipe left.paper"]
    assert "no recipe 'other'" in refused(PluginError, plugins=three, recipes=["other"])


def test_a_plugins_own_backbone_is_named_by_its_id(install, file):
    install.plugin("mine", CLIP)
    assert configured(file=file, encoder="mine.clip").encoder.id == "mine.clip"
    with pytest.raises(PluginError) as caught:
        choose(configured(file=file, encoder="mine.clib"), load_plugins())
    assert "unknown encoder 'mine.clib', did you mean 'mine.clip'?" in str(caught.value)


def test_nothing_named_is_nothing_to_run():
    assert refused().startswith("nothing to run: name a plugin (--plugin ovt), a recipe (--recipe core.pretrain) or a")
    assert refused(PluginError, plugins=["ovv"]).startswith("unknown plugin 'ovv', did you mean 'ovt'?")


def test_a_plugin_without_a_demo_asks_for_data(install):
    install.plugin("lone", RECIPES.replace("{name}", "lone").replace("name='demo'", "name='small'"))
    text = refused(plugins=["lone"])
    assert text == (
        "plugin 'lone' has no demo: name your data with --data STORE, or a recipe with --recipe (it has: paper, small)"
    )


def test_a_plugin_of_parts_only_goes_with_a_file_or_with_another(install, file):
    install.plugin("parts", PULL)
    assert configured(plugins=["parts"], file=file).plugins == ("parts",)
    assert configured(plugins=["ovt", "parts"]).plugins == ("ovt", "parts")
    assert "brings no recipe" in refused(PluginError, plugins=["parts"])


@pytest.mark.parametrize("second", ["optimizer: {lr: 2.0e-3}", "adapters: {ovt.lora: {rank: 4}}"])
def test_a_contradiction_between_two_recipes_names_both(install, second):
    for name, text in (("left", "optimizer: {lr: 1.0e-3}\nadapters: {ovt.lora: {rank: 8}}\n"), ("right", second)):
        install.plugin(name, RECIPES.replace("{name}", name))
        folder = install.folder / f"third_{name}_files"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "demo.yaml").write_text(text)
    key, one, other = ("optimizer.lr", 0.001, 0.002) if "lr" in second else ("adapters[ovt.lora].rank", 8, 4)
    assert refused(plugins=["left", "right"]).startswith(
        f"{key} is {one} in recipe left.demo and {other} in recipe right.demo; settle each, as "
        f"--set '{key}={one}', or in a YAML file; or run one recipe and add the other's losses, as --recipe left.demo"
    )


def test_recipes_that_agree_are_merged(install):
    for name, extra in (("left", "losses: {core.itc: {}}"), ("right", "losses: {core.siglip: {}}")):
        install.plugin(name, RECIPES.replace("{name}", name))
        folder = install.folder / f"third_{name}_files"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "demo.yaml").write_text(
            "encoder: {id: core.open_clip}\ndata: {demo: {id: data.views, path: demo}}\n" + extra
        )
    found = configured(plugins=["left", "right"])
    assert set(found.losses) == {"core.itc", "core.siglip"}
    assert found.plugins == ("left", "right")


# --- precedence -------------------------------------------------------------------------------------------------


def test_recipe_then_file_then_flags_then_set(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("run: {max_steps: 7, seed: 7, output: a}\noptimizer: {lr: 7.0}\n")
    request = {"plugins": ["ovt"], "recipes": ["demo"], "file": file, "flags": {"run": {"seed": 8, "output": "b"}}}
    found = configured(**request, assignments=["run.output=c"])
    assert (found.run.max_steps, found.run.seed, found.run.output) == (7, 8, "c")
    assert found.optimizer.lr == 7.0
    assert found.optimizer.warmup_steps == 10  # of the recipe
    layers = resolved(**request, assignments=["run.output=c"]).layers
    sources = {key: layers.source_of(("run", key)) for key in ("max_steps", "seed", "output", "precision")}
    assert sources == {
        "max_steps": f"{file}:1",
        "seed": "flag",
        "output": "--set",
        "precision": "recipe ovt.demo",
    }


# --- data -------------------------------------------------------------------------------------------------------


def test_data_goes_into_the_first_source_and_the_others_that_ask_are_left_out():
    found = resolved(plugins=["ovt"], data="my/store#train")
    config = found.layers.config()
    assert list(config.data) == ["mvcap"]
    assert (config.data["mvcap"].args["path"], config.data["mvcap"].args["split"]) == ("my/store", "train")
    assert "without source imagenet, which was given no path (--set 'data.imagenet.path=...')" in found.notes
    kept = configured(plugins=["ovt"], data="my/store", assignments=["data[imagenet].path=list.json"])
    assert list(kept.data) == ["mvcap", "imagenet"]


def test_the_first_source_must_have_data(file):
    assert refused(plugins=["ovt"], recipes=["paper"]) == (
        "data.mvcap.path is null: name your data with --data STORE, or --set 'data.mvcap.path=STORE'"
    )


def test_what_only_a_source_left_out_could_feed_is_left_out_with_it(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "encoder: {id: core.open_clip}\n"
        "data: {mine: {id: data.views, path: s}, other: {id: data.views, path: null}}\n"
        "losses: {core.itc: {on: [mine, other]}, core.siglip: {on: [other]}}\n"
        "trainers: {ovt.outlier_mining: {on: [other]}}\n"
        "validate: {data: {here: {id: data.views, path: s}, there: {id: data.views, path: null}}}\n"
    )
    found = resolved(file=file)
    config = found.layers.config()
    assert {name: part.on for name, part in config.losses.items()} == {"core.itc": ("mine",)}
    assert config.trainers == {}
    assert list(config.validation.data) == ["here"]
    assert found.notes == [
        "without source other, which was given no path (--set 'data.other.path=...')",
        "without losses[core.siglip], which works on other alone",
        "without trainers[ovt.outlier_mining], which works on other alone",
        "without measuring on there, which was given no path",
    ]


def test_data_to_measure_on_takes_the_split_as_its_name_and_the_trained_size():
    found = configured(plugins=["ovt"], data="s#train", validate="s#test")
    assert found.validation.data["test"].args == {"path": "s", "split": "test", "image_size": 224}
    assert "validation" in configured(plugins=["ovt"], data="s", validate="other").validation.data


def test_what_is_measured_has_stored_vectors_where_training_has_no_images() -> None:
    part = configured(plugins=["mvc_heads"], data="s#train", validate="s#test").validation.data["test"]
    assert (part.args["split"], part.args["embeddings"], part.args["images"]) == ("test", ["clip"], False)
    assert "cache" not in part.args
    part = configured(plugins=["duoduo"], data="s#train", validate="s#test").validation.data["test"]
    assert "embeddings" not in part.args


# --- encoders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "model", "tag"),
    [
        ("ViT-B-16:openai", "ViT-B-16", "openai"),
        ("ViT-B-16", "ViT-B-16", None),
        ("clip.json:weights.safetensors", "clip.json", "weights.safetensors"),
        ("hf-hub:org/model", "hf-hub:org/model", None),
        ("local-dir:some/export", "local-dir:some/export", None),
        ("package:mvcore_data/demo/clip.json", "package:mvcore_data/demo/clip.json", None),
    ],
)
def test_an_encoder_by_name_and_tag(text, model, tag):
    found = configured(plugins=["ovt"], data="s", encoder=text).encoder
    assert (found.id, found.args["model"], found.args["pretrained"]) == ("core.open_clip", model, tag)
    assert found.args["train"] == "none"  # the rest of the recipe's entry stays


# --- losses -----------------------------------------------------------------------------------------------------


def test_a_loss_is_weighted_added_or_dropped():
    found = resolved(plugins=["ovt"], losses=["ovt.vc=0.25", "core.siglip", "core.itc=0"])
    weights = {name: part.weight for name, part in found.layers.config().losses.items()}
    assert weights == {"ovt.vc": 0.25, "core.siglip": 1.0}
    assert found.layers.config().losses["ovt.vc"].args == {"margin": 0.3}
    assert "loss core.itc dropped (--loss core.itc=0)" in found.notes


def test_a_loss_is_found_by_its_id_where_it_has_another_name(file):
    found = configured(file=file, losses=["core.siglip=0.5"])
    assert {name: part.weight for name, part in found.losses.items()} == {"core.itc": 1.0, "again": 0.5}
    assert set(configured(file=file, losses=["core.siglip=0"]).losses) == {"core.itc"}


def test_only_the_losses_named_are_kept():
    assert set(configured(plugins=["ovt"], losses=["ovt.vc"], only_losses=True).losses) == {"ovt.vc"}
    assert refused(plugins=["ovt"], only_losses=True).startswith("--only-losses keeps the losses named by --loss, and")


@pytest.mark.parametrize(
    ("loss", "error", "text"),
    [
        ("ovt.vc=much", ConfigError, "--loss 'ovt.vc=much': the weight must be a finite number, as --loss ovt.vc=0.5"),
        ("ovt.vc=nan", ConfigError, "--loss 'ovt.vc=nan': the weight must be a finite number"),
        ("ovt.vcc=0", ConfigError, "--loss ovt.vcc=0: there is no such loss to drop, did you mean 'ovt.vc'? (there"),
        ("ovt.vcc=1", PluginError, "unknown loss 'ovt.vcc', did you mean 'ovt.vc'?"),
        ("nothere.loss", PluginError, "unknown loss 'nothere.loss'"),
    ],
)
def test_a_loss_that_cannot_be_meant(loss, error, text):
    assert refused(error, plugins=["ovt"], losses=[loss]).startswith(text)


def test_an_added_loss_brings_its_trainer_from_its_plugins_recipe_and_says_so():
    found = resolved(recipes=["core.pretrain"], data="s", losses=["ovt.vc=0.5"])
    config = found.layers.config()
    assert list(config.trainers) == ["ovt.outlier_mining"]
    # The recipe names its own source there, which this run does not have.
    assert config.trainers["ovt.outlier_mining"].on is None
    assert config.trainers["ovt.outlier_mining"].args["k"] == 5
    assert config.adapters == {}
    assert found.layers.source_of(("trainers", "ovt.outlier_mining", "k")) == "recipe ovt.paper, for ovt.vc"
    assert (
        "trainer ovt.outlier_mining from recipe ovt.paper: ovt.vc needs state:ovt.anchors, state:ovt.outliers"
        in found.notes
    )


STATE = HEAD + (
    "@hookimpl\ndef mvcore_register_losses():\n"
    "    return [LossSpec(name='pull', summary='P', factory='torch.nn:Identity', needs={'state:{name}.goal'})]\n"
    "@hookimpl\ndef mvcore_register_trainers():\n"
    "    provides = {'state:{name}.goal': 'view'}\n"
    "    return [TrainerSpec(name=name, summary='T', factory='torch.nn:Identity', provides=provides)\n"
    "            for name in {trainers}]\n"
)


def test_an_added_loss_without_a_recipe_brings_the_only_trainer_that_publishes_what_it_needs(install, file):
    install.plugin("one", STATE.replace("{name}", "one").replace("{trainers}", "['aim']"))
    install.plugin("two", STATE.replace("{name}", "two").replace("{trainers}", "['aim', 'guess']"))
    found = resolved(file=file, losses=["one.pull=2"])
    assert list(found.layers.config().trainers) == ["one.aim"]
    assert "trainer one.aim: one.pull needs state:one.goal, which no other trainer publishes" in found.notes
    assert not configured(file=file, losses=["two.pull=2"]).trainers


def test_an_added_loss_brings_nothing_that_the_run_has(file):
    file.write_text(file.read_text() + "trainers: {mining: {id: ovt.outlier_mining, k: 2}}\n")
    found = configured(file=file, losses=["ovt.vc"])
    assert {name: part.args for name, part in found.trainers.items()} == {"mining": {"k": 2}}


# --- plugin files -----------------------------------------------------------------------------------------------


def test_a_plugins_file_stands_by_its_path_so_that_the_run_runs_again(install, tmp_path: Path, file, monkeypatch):
    (tmp_path / "my_loss.py").write_text(PULL)
    monkeypatch.chdir(tmp_path)
    found = configured(plugins=["./my_loss.py"], file=file, losses=["my_loss.pull"])
    assert found.plugins == (str(tmp_path / "my_loss.py"),)
    assert "my_loss.pull" in found.losses


def test_a_plugins_file_named_in_yaml_is_loaded(install, tmp_path: Path, file):
    path = tmp_path / "my_loss.py"
    path.write_text(PULL)
    file.write_text(file.read_text() + f"plugins: [{path}]\n")
    assert configured(file=file, losses=["my_loss.pull=2"]).losses["my_loss.pull"].weight == 2.0
    before = load_plugins().spec("loss", "my_loss.pull")
    assert use_plugin(str(path), load_plugins()).name == "my_loss"
    assert load_plugins().spec("loss", "my_loss.pull") is not None
    assert load_plugins().spec("loss", "my_loss.pull").spec is before.spec  # not run a second time


def test_a_plugins_file_that_is_not_there(install):
    assert refused(PluginError, plugins=["./nothing.py"]) == "--plugin ./nothing.py: no such Python file"


# --- what is of the wrong kind is left for the validation to find -----------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "line"),
    [
        ("data: [store]", "data: "),
        ("data: {mine: store}", "data.mine: "),
        ("losses: 3", "losses: "),
        ("losses: {core.itc: 3}", "losses[core.itc]: "),
        ("validate: {data: [a]}", "validate.data: "),
        ("validate: 3", "validate: "),
        ("plugins: ovt", "plugins: "),
        ("plugins: {ovt: 1}", "plugins: "),
    ],
)
@pytest.mark.parametrize("flags", [{}, {"data": "store", "validate": "store"}, {"losses": ["core.itc=2"]}])
def test_sections_of_the_wrong_kind(tmp_path: Path, yaml, line, flags):
    path = tmp_path / "run.yaml"
    path.write_text(yaml)
    text = refused(file=path, **flags)  # one line in any case
    if not flags:
        assert f"{path}:1: {line}" in text


def test_a_source_that_only_dropped_losses_named_goes_with_them() -> None:
    found = resolved(plugins=["ovt"], losses=["core.itc=0"])
    assert list(found.layers.config().data) == ["objects"]
    assert "source frontal dropped: no loss that is left reads it" in found.notes


def test_a_loss_without_on_keeps_every_source() -> None:
    found = resolved(plugins=["ovt"], losses=["core.itc=0", "core.siglip=1"])
    assert set(found.layers.config().data) == {"objects", "frontal"}
