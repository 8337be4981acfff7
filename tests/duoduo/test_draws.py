"""Acceptance A15 to A18: which views and captions a step sees, what they are drawn to, and where they are cropped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from mvcore.api import ConfigError, Features, ViewBatch
from mvcore.cli.main import run
from mvcore.config_layers import read_yaml
from mvcore.encoders.open_clip import OpenClip
from mvcore.model import Link, Pipeline, evaluating
from mvcore.plugins import load_plugins, recipe_path
from mvcore.training.sampling import SourceSampler, SourceSpecification
from mvcore_data import ViewStoreWriter
from mvcore_data.views import Views
from mvcore_duoduo.attention import CrossViewAdapter
from mvcore_duoduo.released import CropAdapter
from mvcore_duoduo.targets import ImageTargetAdapter
from torch.nn.functional import interpolate

OBJECTS, VIEWS = 20, 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects of 12 tiny views; object i has i % 4 captions."""
    path = tmp_path_factory.mktemp("draws") / "store"
    rng = np.random.default_rng(0)
    with ViewStoreWriter(path, codec="png") as writer:
        for i in range(OBJECTS):
            views = list(rng.integers(0, 256, (VIEWS, 8, 8, 3), np.uint8))
            writer.add_object(f"o{i}", views, captions=[f"{i} {word}" for word in "abc"[: i % 4]])
    return path


def write_vectors(folder: Path, vectors: np.ndarray) -> Path:
    """A file of the authors' layout."""
    folder.mkdir()
    with h5py.File(folder / "image_embeddings.h5", "w") as file:
        file["img_feat"] = vectors
    (folder / "model_to_idx.json").write_text(json.dumps({f"o{i}": i for i in range(len(vectors))}))
    return folder / "image_embeddings.h5"


def test_a15_targets_are_the_mean_over_exactly_the_drawn_views(store: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((OBJECTS, VIEWS, 5)).astype(np.float16)
    changed = vectors.copy()
    changed[3, 7] += 1  # drawn below
    changed[3, 8] += 1  # not drawn
    for tag, values in (("plain", vectors), ("changed", changed)):
        file = write_vectors(tmp_path / tag, values)
        assert run(["data", "embed", str(store), "--import", str(file), "--tag", tag]) == 0
    source = Views(path=str(store), embeddings=["plain", "changed"], images=False)
    drawn = {3: [36 + 2, 36 + 7], 11: [132 + 5]}
    batch = source.load_many(list(drawn.items()), None)

    def targets(tag: str) -> torch.Tensor:
        return ImageTargetAdapter(embeddings=tag)(Features({}), batch)["duoduo.image_target"]

    wide = vectors.astype(np.float64)
    expected = np.stack([(wide[3, 2] + wide[3, 7]) / 2, wide[11, 5]])
    np.testing.assert_allclose(targets("plain").numpy(), expected, atol=1e-6)
    wide[3, 7] = changed[3, 7]
    np.testing.assert_allclose(targets("changed")[0].numpy(), (wide[3, 2] + wide[3, 7]) / 2, atol=1e-6)
    assert torch.equal(targets("changed")[1], targets("plain")[1])


def sampler_of(recipe: str, store: Path) -> SourceSampler:
    """What draws a recipe's first source, on a store."""
    values: dict[str, Any] = read_yaml(recipe_path(load_plugins().recipe("duoduo", recipe)))[0]["data"]["objects"]
    low, high = values["views_per_object"]
    dataset = Views(path=str(store), images=False)
    options: dict[str, Any] = {name: values[name] for name in ("sampling", "batch_size", "views_draw")}
    return SourceSampler(
        SourceSpecification(name="o", dataset=dataset, views_per_object=(low, high), **options), seed=5
    )


def uniform(counts: np.ndarray) -> bool:
    """Pearson's test: whether equal chances would give such counts in 99 of 100 cases."""
    statistic = float(((counts - counts.mean()) ** 2).sum() / counts.mean())
    return statistic < {6: 15.09, 12: 24.73}[len(counts)]


def test_a16_paper_draws_each_objects_number_and_views_apart(store: Path) -> None:
    sampler = sampler_of("paper", store)
    draws = [sampler.draw(step) for step in range(600)]
    counts = np.concatenate([draw.counts for draw in draws])
    assert uniform(np.bincount(counts, minlength=7)[1:])
    places = np.concatenate([draw.views % VIEWS for draw in draws])
    assert uniform(np.bincount(places, minlength=VIEWS))
    for draw in draws[:20]:
        assert len(set(draw.counts.tolist())) > 1
        assert len(set(draw.views.tolist())) == len(draw.views)


def test_a16_released_shows_the_same_views_of_every_object_of_a_step(store: Path) -> None:
    sampler = sampler_of("released", store)
    draws = [sampler.draw(step) for step in range(3000)]
    counts = np.array([draw.counts[0] for draw in draws])
    assert uniform(np.bincount(counts, minlength=7)[1:])
    sets: list[tuple[int, ...]] = []
    for draw in draws:
        rows = draw.views.reshape(OBJECTS, draw.counts[0]) - VIEWS * np.asarray(draw.objects)[:, None]
        assert (rows == rows[0]).all()
        assert (np.diff(rows[0]) > 0).all()
        assert rows.min() >= 0
        assert rows.max() < VIEWS
        sets.append(tuple(rows[0].tolist()))
    assert len(set(sets)) > 500
    again = sampler_of("released", store)
    assert (again.draw(1234).views == draws[1234].views).all()


def test_a17_each_of_an_objects_captions_is_drawn_equally_often(store: Path) -> None:
    source = Views(path=str(store), captions="random", images=False)
    requests = [(i, [VIEWS * i]) for i in range(4)] * 2000
    drawn: Counter[str] = Counter()
    for seed in range(10):
        batch = source.load_many(requests, lambda k, seed=seed: np.random.default_rng([seed, k]))
        drawn.update(batch.captions)
    wanted = {"1 a": 1.0, "2 a": 0.5, "2 b": 0.5, "3 a": 1 / 3, "3 b": 1 / 3, "3 c": 1 / 3}
    assert drawn.keys() == wanted.keys()
    for caption, share in wanted.items():
        assert drawn[caption] / 20_000 == pytest.approx(share, abs=0.01)


@pytest.fixture
def cropping(tiny_clip_json: Path) -> tuple[OpenClip, CropAdapter, Pipeline]:
    """A model that crops 24 of 32 pixels."""
    torch.manual_seed(0)
    backbone = OpenClip(model=str(tiny_clip_json), pretrained=None)
    crop, target, crossing = CropAdapter(24, evaluation="centre"), ImageTargetAdapter(), CrossViewAdapter(1)
    for adapter in (crop, target, crossing):
        adapter.attach(backbone)
    gives = frozenset({"duoduo.image_target"})
    links = [
        Link("duoduo.crop", crop),
        Link("duoduo.image_target", target, frozenset({"images"}), gives, {"duoduo.image_target": "object"}),
        Link("duoduo.cross_view", crossing),
    ]
    return backbone, crop, Pipeline(backbone, links)


def test_a18_crops_are_one_place_in_training_and_fixed_outside(
    cropping: tuple[OpenClip, CropAdapter, Pipeline],
) -> None:
    _, crop, pipeline = cropping
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pipeline.train()
    seen: set[tuple[int, int]] = set()
    for _ in range(40):
        out = crop.cropped(images)
        # Which place it was: the one whose enlarged square this is, for all images of the call.
        matching = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.allclose(out, enlarged(images, top, left), atol=1e-5)
        ]
        assert len(matching) == 1
        seen.update(matching)
    assert len(seen) > 10
    pipeline.eval()
    torch.testing.assert_close(crop.cropped(images), enlarged(images, 4, 4))
    assert CropAdapter(24).eval().cropped(images) is images


def enlarged(images: torch.Tensor, top: int, left: int) -> torch.Tensor:
    return interpolate(images[:, :, top : top + 24, left : left + 24], (32, 32), mode="bilinear", antialias=True)


def test_a18_targets_see_the_whole_image(cropping: tuple[OpenClip, CropAdapter, Pipeline]) -> None:
    backbone, _, pipeline = cropping
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = ViewBatch.make([1, 2], images=images)
    with evaluating(pipeline):
        found = pipeline(batch, frozenset({"object", "duoduo.image_target"}))
        whole = backbone.model.encode_image(backbone.normalise(images))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(
        found["duoduo.image_target"], torch.stack([whole[0], whole[1:].mean(0)]), atol=1e-5, rtol=1e-5
    )
    assert float((found.object[0] - whole[0]).abs().max()) > 1e-3  # of one view: cropped, or it were that view's vector


def test_a_crop_larger_than_the_image_is_refused(tiny_clip_json: Path) -> None:
    backbone = OpenClip(model=str(tiny_clip_json), pretrained=None)
    with pytest.raises(ConfigError, match="size 208 is more than the 32 pixels"):
        CropAdapter().attach(backbone)
