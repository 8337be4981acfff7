"""Two sources in one contrast, as the authors' joint training with MVImgNet; and what the recipes say."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mvcore.api import ViewBatch
from mvcore.build import options_model
from mvcore.cli.main import run
from mvcore.config import RunConfig
from mvcore.config_layers import Layers
from mvcore.model import evaluating
from mvcore.plugins import load_plugins
from mvcore.resolution import Request, resolve
from mvcore.running import open_session
from mvcore.training.fit import prepare
from mvcore_data import ViewStoreWriter
from mvcore_duoduo import contrastive
from torch import Tensor

PAGE = (Path(__file__).parents[2] / "docs/methods/duoduo.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Objects with captions of their own, and objects with a caption for each view."""
    folder, rng = tmp_path_factory.mktemp("joint"), np.random.default_rng(0)
    found = {name: folder / name for name in ("four", "mvimgnet")}
    for name, path in found.items():
        with ViewStoreWriter(path, codec="png") as writer:
            for i in range(8):
                views = list(rng.integers(0, 256, (7, 32, 32, 3), np.uint8))
                captions: dict[str, Any] = {"captions": [f"thing {i}", f"object {i}"]}
                if name == "mvimgnet":
                    captions = {"view_captions": [f"side {v} of {i}" for v in range(7)]}
                writer.add_object(f"{name}-{i}", views, **captions)
    return found


@pytest.fixture
def example(stores: dict[str, Path], tiny_clip_json: Path) -> dict[str, Any]:
    """The run of the documentation on these stores, with a small model and few steps."""
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "mvimgnet:" in block]
    values: dict[str, Any] = yaml.safe_load(text)
    assert values["data"].keys() == stores.keys()
    for name, path in stores.items():
        values["data"][name] |= {"path": str(path), "image_size": 32}
    values["encoder"] |= {"model": str(tiny_clip_json), "pretrained": None}
    values["adapters"]["duoduo.cross_view"]["cross_view_from"] = 1
    values["run"] |= {"batch_size": 10, "max_steps": 3, "micro_batch": "auto", "precision": "32-true"}
    values["run"] |= {"workers": 0, "accelerator": "cpu", "log_every": 1}
    return values


def rows_of(batch: ViewBatch, text: Tensor) -> Tensor:
    """The mean of the texts of each object, by a loop."""
    owners = batch.caption_object.tolist()
    return torch.stack(
        [
            torch.stack([row for row, k in zip(text, owners, strict=True) if k == i]).mean(0)
            for i in range(batch.n_objects)
        ]
    )


def test_the_rows_of_both_sources_are_one_contrast(example: dict[str, Any], tmp_path: Path) -> None:
    layers = Layers()
    layers.merge(example, "test")
    session = open_session(layers.config(), load_plugins())
    training = prepare(session.plan, session.sources, tmp_path)
    batches: dict[str, ViewBatch] = next(iter(training.module.make_loader(0, 1, 0)))  # pyright: ignore
    four, mvimgnet = batches["four"], batches["mvimgnet"]
    assert (four.n_objects, mvimgnet.n_objects) == (8, 2)  # shares 4 and 1 of 10
    assert len(four.captions) == four.n_objects  # one caption of each object
    assert len(mvimgnet.captions) == mvimgnet.n_views  # that of each drawn view
    captions = [f"side {v % 7} of {v // 7}" for v in (mvimgnet.view_ids - 8 * 7).tolist()]
    assert list(mvimgnet.captions) == captions
    outcome = training.module.objective.step(batches, lambda total: total.backward())
    keys = frozenset({"object", "text", "duoduo.image_target", "duoduo.log_scale"})
    with evaluating(training.pipeline):
        found = {name: training.pipeline(batch, keys) for name, batch in batches.items()}
    shape = torch.cat([found[name].object for name in batches])
    image = torch.cat([found[name]["duoduo.image_target"] for name in batches])
    text = torch.cat([rows_of(batches[name], found[name].text) for name in batches])
    scale = found["four"]["duoduo.log_scale"].detach()
    for name, target in (("duoduo.shape_image", image), ("duoduo.shape_text", text)):
        expected = float(contrastive(shape, target, scale))
        assert float(outcome.terms[name]) == pytest.approx(expected, rel=1e-4)
        apart = [
            float(contrastive(s, t, scale)) for s, t in zip(shape.split([8, 2]), target.split([8, 2]), strict=True)
        ]
        assert abs(sum(apart) / 2 - expected) > 0.1  # rows of the other source are negatives


def test_each_source_draws_its_own_views(example: dict[str, Any], tmp_path: Path) -> None:
    layers = Layers()
    layers.merge(example, "test")
    session = open_session(layers.config(), load_plugins())
    loader = prepare(session.plan, session.sources, tmp_path).module.make_loader(0, 1, 0)  # pyright: ignore
    drawn: list[tuple[int, int]] = []
    for batches in loader:
        counts = [set(batches[name].view_counts.tolist()) for name in ("four", "mvimgnet")]
        assert all(len(each) == 1 for each in counts)  # views_draw: indices
        drawn.append((counts[0].pop(), counts[1].pop()))
    assert any(one != other for one, other in drawn)


def test_the_example_of_the_documentation_trains(example: dict[str, Any], tmp_path: Path) -> None:
    example["run"]["micro_batch"] = 8
    file = tmp_path / "joint.yaml"
    file.write_text(yaml.safe_dump(example))
    assert run(["train", str(file), "-o", str(tmp_path / "run")]) == 0
    with (tmp_path / "run/metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    assert all(float(row[f"train/duoduo.{name}"]) > 0 for row in rows for name in ("shape_image", "shape_text"))
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"


def config_of(recipe: str, *assignments: str) -> RunConfig:
    request = Request(plugins=("duoduo",), recipes=[recipe], data="store", assignments=assignments)
    return resolve(request, load_plugins()).layers.config()


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_recipes_hold_the_papers_numbers(recipe: str) -> None:
    config = config_of(recipe)
    assert config.encoder.args == {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "train": "none"}
    assert config.adapters["duoduo.cross_view"].args["cross_view_from"] == 6
    assert config.adapters["duoduo.log_scale"].args["start"] == 14.28
    (source,) = config.data.values()
    assert (source.batch_size, source.views_per_object) == (1600, (1, 6))
    assert config.run.max_steps == 80 * 547
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.min_lr, optimizer.weight_decay) == (5e-5, 1e-7, 0.01)
    assert (optimizer.betas, optimizer.eps, optimizer.clip_norm) == ((0.9, 0.999), 1e-8, None)
    released = recipe == "released"
    assert source.views_draw == ("indices" if released else "object")
    assert optimizer.decay == ("all" if released else "matrices")
    assert optimizer.schedule == ("cosine-epochs" if released else "cosine")
    assert optimizer.schedule_epochs == (80 if released else None)
    assert {part.args["max_scale"] for part in config.losses.values()} == {None if released else 100.0}
    assert ("duoduo.crop" in config.adapters) == released


def test_released_trains_on_mvimgnet_beside_where_it_is_named() -> None:
    config = config_of("released", "data[mvimgnet].path=mvimgnet")
    assert {name: part.batch_size for name, part in config.data.items()} == {"objects": 1600, "mvimgnet": 400}
    assert config.data["mvimgnet"].args["captions"] == "all"
    assert all(part.on is None for part in config.losses.values())


def test_cached_tokens_and_random_crops_are_refused(
    example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example["adapters"] |= {"duoduo.crop": {"size": 24}, "duoduo.cross_view": {"cross_view_from": 1}}
    example["adapters"]["duoduo.cross_view"]["prefix_cache"] = True
    example["trainers"] = {"duoduo.prefix_cache": {}}
    file = tmp_path / "joint.yaml"
    file.write_text(yaml.safe_dump(example))
    assert run(["train", str(file), "-o", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "adapters[duoduo.crop]: images are cropped otherwise in training than outside of it" in line
    alike = ["--set", "adapters[duoduo.crop]={training: centre, evaluation: centre}"]
    assert run(["train", str(file), *alike, "-o", str(tmp_path / "run")]) == 0


def test_the_page_names_every_part_and_option() -> None:
    registry = load_plugins()
    for kind in ("encoder", "loss", "trainer"):
        for part in registry.specs(kind).values():
            if part.plugin == "duoduo":
                assert f"`{part.id}`" in PAGE
                model = options_model(part)
                assert model is not None
                for name, option in model.model_fields.items():
                    (row,) = {line for line in PAGE.splitlines() if re.match(rf"\|[^|]*\| `{name}` \|", line)}
                    if option.default is not None:
                        default = json.dumps(option.default).strip('"')
                        assert row.split("|")[3].strip() == f"`{default}`", row
