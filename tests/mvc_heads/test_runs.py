"""Runs on stored vectors: the recipes, what a step draws, micro-batches, and the caches of other models."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvcore
import numpy as np
import pytest
import torch
from mvcore import build
from mvcore.api import ConfigError, DataError
from mvcore.plugins import load_plugins
from mvcore.running import run
from mvcore.training.loader import StepLoader
from mvcore.training.planner import choose
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.split import split_store
from mvcore_mvc_heads.terms import Autoencoding, Contrastive, ObjectSimilarity
from torch import nn

if TYPE_CHECKING:
    from conftest import Lab

METHODS = ("baseline", "object", "contrastive", "autoencoder")
RECIPES = [f"{method}-{kind}" for method in METHODS for kind in ("paper", "released")]
VIEWS, WIDTH = 8, 16


def quiet() -> Any:
    import io

    from rich.console import Console

    return Console(file=io.StringIO(), force_terminal=False)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_every_part_resolves_and_its_options_have_defaults() -> None:
    registry = load_plugins()
    wanted = {
        "encoder": {"mlp", "autoencoder", "identity"},
        "loss": {"object", "contrastive", "autoencoder", "infonce"},
        "evaluator": {"reconstruction"},
        "recipe": {*RECIPES, "demo"},
    }
    for kind, names in wanted.items():
        found = {id: entry for id, entry in registry.specs(kind).items() if id.startswith("mvc_heads.")}
        assert set(found) == {f"mvc_heads.{name}" for name in names}
        for entry in found.values() if kind != "recipe" else ():
            assert build.make(entry, build.options(entry, {}, "test")) is not None
    assert registry.recipe("mvc_heads").id == "mvc_heads.autoencoder-paper"


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("baseline")])
def test_a32_each_recipe_trains_and_logs_what_its_loss_returns(lab: Lab, tmp_path: Path, name: str) -> None:
    values = lab.values(name)
    folder = tmp_path / "run"
    rows = run(lab.session(values), folder, json.dumps(values), quiet())
    assert set(rows) == {"untouched", "tuned"}
    logged = {key for key in metrics(folder)[0] if key.startswith("train/mvc_heads.")}
    loss = f"train/mvc_heads.{name.split('-')[0]}"
    beside = {"object": ["positive"], "contrastive": ["positive", "negative"]}
    keys = beside.get(name.split("-")[0], ["reconstruction", "positive", "negative"])
    assert logged == {loss, f"{loss}.weighted", *(f"{loss}/{key}" for key in keys)}
    if "autoencoder" in name:
        assert "mvc_heads.reconstruction/mse/all" in rows["tuned"]["mvc_heads.reconstruction"].by_name()
        assert not rows["untouched"]["mvc_heads.reconstruction"].figures


@pytest.mark.parametrize("name", ["baseline-paper", "baseline-released"])
def test_a27_the_baseline_changes_nothing(lab: Lab, tmp_path: Path, name: str) -> None:
    values = lab.values(name, run={"max_steps": lab.recipe(name)["run"]["max_steps"]})
    rows = run(lab.session(values), tmp_path / "run", json.dumps(values), quiet())
    untouched, tuned = rows["untouched"]["core.consistency"], rows["tuned"]["core.consistency"]
    assert len(tuned.figures) >= 3
    for figure in untouched.figures:
        assert tuned[figure.name].value == figure.value
        assert np.array_equal(np.asarray(tuned[figure.name].samples), np.asarray(figure.samples))


def both(lab: Lab, method: str) -> list[dict[str, Any]]:
    """The options of the method's loss, as described and as released."""
    return [lab.recipe(f"{method}-{kind}")["losses"][f"mvc_heads.{method}"] for kind in ("paper", "released")]


def test_paper_and_released_differ_where_the_documentation_says(lab: Lab) -> None:
    paper, released = both(lab, "contrastive")
    assert (paper["normalise"], paper["cross_pairs"]) == ("mean", "figure")
    assert (released["normalise"], released["cross_pairs"]) == ("reference", "all")
    paper, released = both(lab, "autoencoder")
    assert (paper["similarity_weight"], released["similarity_weight"]) == (1.0, 0.5)
    assert released["normalise"] == "reference"
    for name in RECIPES:
        values = lab.recipe(name)
        assert values["optimizer"]["lr"] == 1e-3
        assert values["optimizer"]["weight_decay"] == 0
        assert values["data"]["objects"]["views_per_object"] == 6


def test_adamw_without_decay_is_adam() -> None:
    """So the recipes need no optimizer of the authors' name."""
    from mvcore.config import OptimizerSettings
    from mvcore.training.optimization import make_optimizer

    settings = OptimizerSettings(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8)
    mine, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    optimizers = [make_optimizer(settings, {"w": mine}), torch.optim.Adam([theirs], lr=1e-3)]
    for step in range(20):
        for parameter, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            ((parameter * (step - 7)).sin() ** 2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"losses": {"mvc_heads.object": {"weight_similarity": 0.5}}}, "weight_similarity"),
        ({"adapters": {"mvc_heads.mlp": {"n_hidden_layers": 2}}}, "n_hidden_layers"),
        ({"data": {"objects": {"shuffle": True}}}, "shuffle"),
        ({"earlystopping": None, "optimizer": {"scheduler": "x"}}, "scheduler"),
    ],
)
def test_a32_unknown_keys_are_errors(lab: Lab, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lab.session(lab.values("object-paper", **change))


@pytest.mark.process
def test_the_specs_import_neither_torch_nor_lightning() -> None:
    code = (
        "import sys, mvcore_mvc_heads.plugin as p; p.mvcore_register_encoders(); p.mvcore_register_recipes();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- what a step sees ------------------------------------------------------------------------------------------------


def test_a25_a_step_has_all_objects_with_different_views_drawn_evenly_anew(lab: Lab, tmp_path: Path) -> None:
    training = lab.prepare(lab.values("object-paper"), tmp_path)
    loader: Any = training.module.make_loader(0, 1, 0)  # pyright: ignore[reportOptionalCall]
    assert isinstance(loader, StepLoader)
    assert len(loader) == 1  # one step an epoch
    times = np.zeros((10, VIEWS), int)
    draws: set[tuple[int, ...]] = set()
    epochs = 300
    for _ in range(epochs):
        for step in loader:
            batch = step["objects"]
            assert sorted(batch.object_ids.tolist()) == list(range(10))
            assert batch.counts == (6,) * 10
            views = batch.view_ids.numpy().reshape(10, 6)
            assert all(len(set(row)) == 6 for row in views.tolist())
            times[views // VIEWS, views % VIEWS] += 1
            draws.add(tuple(views[0].tolist()))
    # Binomial with p = 6/8: five standard deviations.
    assert np.abs(times - 0.75 * epochs).max() < 5 * np.sqrt(epochs * 0.75 * 0.25)
    assert len(draws) > 100
    source = lab.session(lab.values("object-paper")).measured["all"]
    assert [source.views_of(i) for i in range(10)] == [range(8 * i, 8 * i + 8) for i in range(10)]


def test_a12_text_gets_no_gradient_and_the_head_all(lab: Lab, tmp_path: Path) -> None:
    training = lab.prepare(lab.values("contrastive-paper"), tmp_path)
    batch = next(iter(training.module.make_loader(0, 1, 0)))  # pyright: ignore[reportOptionalCall]
    training.module.objective.step(batch, lambda loss: loss.backward())
    trained = training.module.trained()
    assert len(trained) == 6
    for name, parameter in trained.items():
        assert name.startswith("adapters/mvc_heads.mlp/")
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["object-paper", "contrastive-released", "autoencoder-released"])
def test_a31_micro_batches_see_the_pairs_of_the_whole_batch(lab: Lab, tmp_path: Path, name: str) -> None:
    values = lab.values(name)
    training = lab.prepare(values, tmp_path)
    objective = training.module.objective
    batch = next(iter(training.module.make_loader(0, 1, 0)))  # pyright: ignore[reportOptionalCall]

    def gradients() -> list[torch.Tensor]:
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in training.module.trained().values()]
        training.module.zero_grad()
        return found

    whole = objective.step(batch, lambda loss: loss.backward())
    expected = gradients()
    cached = objective.cached_step(batch, lambda loss: loss.backward(), 12, lambda part: None)
    torch.testing.assert_close(cached.total, whole.total)
    for mine, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    from mvcore.packing import split_objects

    pieces = split_objects(batch["objects"], 30)
    assert len(pieces) == 2
    for piece in pieces:  # equal in size, so their mean is what accumulation gives
        objective.step({"objects": piece}, lambda loss: (loss / 2).backward())
    apart = max(float((a - b).abs().max()) for a, b in zip(gradients(), expected, strict=True))
    scale = max(float(g.abs().max()) for g in expected)
    assert (apart < 1e-5 * scale) == (name == "object-paper")


def test_the_heads_learn_and_strength_goes_back_to_the_untouched_vectors(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values = lab.values("object-paper", run={"max_steps": 120})
    session = lab.session(values)
    rows = run(session, folder, json.dumps(values), quiet())
    same = "core.consistency/same_object/all"
    assert rows["tuned"]["core.consistency"][same].value > 0.97
    source = session.measured["all"]
    batch = source.load(3, list(source.views_of(3)), None)
    stored = torch.from_numpy(lab.cone.images[3]).half().float()
    view = {s: mvcore.load(folder, strength=s).features(batch, frozenset({"view"})).view for s in (0.0, 0.5, 1.0)}
    torch.testing.assert_close(view[0.0], stored, atol=0, rtol=0)
    torch.testing.assert_close(view[0.5], (view[0.0] + view[1.0]) / 2)
    assert not torch.allclose(view[1.0], stored, atol=0.1)


@pytest.mark.parametrize("unit", [False, True])
def test_the_autoencoder_as_an_adapter(lab: Lab, tmp_path: Path, unit: bool) -> None:
    values = lab.values("autoencoder-paper", adapters={"mvc_heads.autoencoder": {"unit_input": unit}})
    model = lab.prepare(values, tmp_path).model
    source = lab.session(values).measured["all"]
    batch = source.load(2, list(source.views_of(2)), None)
    keys = frozenset({"view", "mvc_heads.original", "mvc_heads.decoded", "mvc_heads.invariant"})
    found = model.features(batch, keys)
    stored = torch.from_numpy(lab.cone.images[2]).half().float()
    expected = nn.functional.normalize(stored, dim=1) if unit else stored
    torch.testing.assert_close(found["mvc_heads.original"], expected)
    network: Any = model.adapters["mvc_heads.autoencoder"]
    outputs = network.autoencoder(expected)
    torch.testing.assert_close(found.view, outputs.decoded_invariant)
    torch.testing.assert_close(found["mvc_heads.decoded"], outputs.decoded)
    torch.testing.assert_close(found["mvc_heads.invariant"], outputs.invariant)
    network.set_strength(0.0)
    assert torch.equal(model.features(batch, frozenset({"view"})).view, stored)


def test_a_width_that_the_authors_network_cannot_have_is_refused_in_one_line(lab: Lab, tmp_path: Path) -> None:
    values = lab.values("autoencoder-paper", adapters={"mvc_heads.autoencoder": {"bottleneck": 100}})
    with pytest.raises(ConfigError, match=r"mvc_heads\.autoencoder: .* powers of two as widths, not 100; use 'linear'"):
        lab.prepare(values, tmp_path)


# -- data ------------------------------------------------------------------------------------------------------------


def test_a24_splits_by_object(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with ViewStoreWriter(folder, codec="png") as writer:
        for i in range(2048):
            writer.add_object(f"object-{i:04}", np.zeros((1, 8, 8, 3), np.uint8))
    found = split_store(folder, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=42)
    sizes = [len(ids) for ids in found.values()]
    assert abs(sizes[0] - 1638.4) < 1
    assert abs(sizes[1] - 204.8) < 1
    assert sum(sizes) == len(set().union(*found.values())) == 2048
    assert split_store(folder, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=42, replace_old=True) == found
    assert split_store(folder, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=1, replace_old=True) != found
    again = split_store(folder, {"train": 0.7, "val": 0.2, "test": 0.1}, replace_old=True)
    assert sum(len(ids) for ids in again.values()) == 2048


def test_a26_the_cache_says_what_made_it_and_another_models_is_refused(lab: Lab, tmp_path: Path) -> None:
    folder = lab.store / "embeddings/clip"
    key = json.loads((folder / "key.json").read_text())
    assert key["model"] == {"id": "made-up"}
    assert key["features"]["image"] == {"feature": "view", "width": WIDTH}
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size / (10 * VIEWS + 10) < 10_000
    clip = tmp_path / "clip.json"
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    clip.write_text(json.dumps(config))
    values = lab.values("object-paper", encoder={"text_encoder": {"id": "core.open_clip", "model": str(clip)}})
    with pytest.raises(DataError, match=r"made otherwise: model is made-up\(\) there and core\.open_clip\(.*embed"):
        run(lab.session(values), tmp_path / "run", "{}", quiet())


def test_sources_with_vectors_of_two_models_are_refused(lab: Lab, tmp_path: Path) -> None:
    from conftest import Cone, write_store

    cone = Cone(10, VIEWS, WIDTH)
    cone.key |= {"architecture_sha256": "1" * 64, "model": {"id": "another"}}
    other = write_store(tmp_path / "other", cone)
    values = lab.values("object-paper", validate={"data": {"all": {"path": str(other)}}})
    with pytest.raises(DataError, match=r"model is another\(\) there and made-up\(\) here; architecture_sha256 is 1"):
        run(lab.session(values), tmp_path / "run", "{}", quiet())


def test_a26_views_without_vectors_are_found_before_anything_trains(lab: Lab, tmp_path: Path) -> None:
    store = Path(shutil.copytree(lab.store, tmp_path / "store"))
    next((store / "embeddings/clip").glob("*.safetensors")).unlink()
    with pytest.raises(DataError, match=r"unfinished: 1 of 1 shards have no vectors yet"):
        lab.session(lab.values("object-paper", data={"objects": {"path": str(store)}}))
    shutil.rmtree(store / "embeddings")
    with pytest.raises(DataError, match=r"no embeddings 'clip' .* make them with 'mvcore data embed"):
        lab.session(lab.values("object-paper", data={"objects": {"path": str(store)}}))
    with ViewStore(store) as opened:
        assert len(opened) == 10


def test_fewer_views_than_are_drawn_are_refused_with_the_objects_name(lab: Lab, tmp_path: Path) -> None:
    from conftest import Cone, write_store

    store = write_store(tmp_path / "short", Cone(3, 4, WIDTH))
    said = r"views_per_object: 6 needs 6 views of every object, but object 'object-0' has 4"
    with pytest.raises(ConfigError, match=said):
        lab.session(lab.values("object-paper", data={"objects": {"path": str(store)}}))


def test_a_loss_can_stand_in_another_methods_run(lab: Lab) -> None:
    """`--loss mvc_heads.contrastive=0.1`: it needs nothing but views and texts."""
    registry = load_plugins()
    for id in ("mvc_heads.contrastive", "mvc_heads.object", "mvc_heads.infonce"):
        assert registry.spec("loss", id).spec.needs == {"view", "text", "captions"}
    values = lab.values("object-paper", losses={"mvc_heads.contrastive": {"weight": 0.1}})
    layers_session = lab.session(values)
    blueprint = choose(layers_session.config, registry)
    assert [part.id for part in blueprint.losses] == ["mvc_heads.object", "mvc_heads.contrastive"]


def test_losses_have_no_parameters() -> None:
    for loss in (ObjectSimilarity(), Contrastive(), Autoencoding()):
        assert not list(loss.parameters())
