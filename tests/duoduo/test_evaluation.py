"""Accuracy by number of views: with the cache of tokens, from images, and one object at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import open_clip
import pytest
import torch
from mvcore.api import DataError, Embedder, EvalResult, Model
from mvcore.cli.main import run
from mvcore.evaluation.runner import evaluate
from mvcore.loading import make_run_pipeline
from mvcore_data import ViewStoreWriter
from mvcore_data.views import Views
from mvcore_duoduo import cross_view
from mvcore_duoduo.evaluation.encoding import SubsetEncoder
from mvcore_duoduo.evaluation.options import ViewCountOptions
from mvcore_duoduo.evaluation.subsets import view_subset
from mvcore_duoduo.evaluation.suffix import ModelSuffix, PlainClipSuffix, suffix_of
from mvcore_duoduo.evaluation.view_count import ViewCount
from PIL import Image
from torch import Tensor

VIEWS = (12, 12, 5, 1, 12)
COUNTS = (1, 2, 5, 12)
SEEDS = (0, 1, 2)
WORDS = ("cow", "fire_engine", "cow", "tea pot", "fire_engine")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five objects of one to twelve random views in three categories."""
    path = tmp_path_factory.mktemp("store") / "store"
    rng = np.random.default_rng(0)
    with ViewStoreWriter(path, codec="png") as writer:
        for i, (count, word) in enumerate(zip(VIEWS, WORDS, strict=True)):
            views = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)]
            writer.add_object(f"o{i}", views, category=word)
    return path


@pytest.fixture
def dataset(store: Path) -> Views:
    return Views(path=str(store), image_size=32)


@pytest.fixture
def make_model(tiny_clip_json: Path) -> Callable[..., Model]:
    """A random CLIP of two blocks with adapters; small batches, so that there are several."""

    def make(views_per_batch: int = 20, visual: Mapping[str, Any] | None = None, **adapters: dict[str, Any]) -> Model:
        from mvcore.config import Part

        torch.manual_seed(0)
        encoder = Part(id="core.open_clip", args={"model": str(tiny_clip_json), "pretrained": None, **(visual or {})})
        parts = {f"duoduo.{name}": Part(id=f"duoduo.{name}", args=args) for name, args in adapters.items()}
        pipeline = make_run_pipeline(encoder, parts, 0).eval()
        return Model(pipeline, views_per_batch=views_per_batch)

    return make


def measured(model: Model, dataset: Views, output: Path, **options: Any) -> EvalResult:
    values: dict[str, Any] = {"counts": COUNTS, "seeds": SEEDS, "topk": (1, 2), "templates": ("a {}",), **options}
    return evaluate(model, {"duoduo.view_count": ViewCount(**values)}, {"s": dataset}, output)["duoduo.view_count"]


def vectors(model: Model, dataset: Views, **options: Any) -> dict[Any, Tensor]:
    """The vector of every draw of every object."""
    encoder = SubsetEncoder(Embedder(model), ViewCountOptions(**options))
    wanted = {
        i: sorted({view_subset(seed, f"o{i}", count, VIEWS[i]) for seed in SEEDS for count in COUNTS})
        for i in range(len(VIEWS))
    }
    found: dict[Any, Tensor] = {}
    for jobs, rows in encoder.encode("s", dataset, wanted, whole=True):
        for job, row in zip(jobs, rows, strict=True):
            assert job not in found, "a subset was encoded twice"
            found[job] = row
    assert found.keys() == {(i, subset) for i, subsets in wanted.items() for subset in subsets}
    return found


def one_by_one(model: Model, dataset: Views, job: Any, cross_view_from: int) -> Tensor:
    i, subset = job
    batch = dataset.load(i, [dataset.views_of(i)[place] for place in subset], None)
    backbone: Any = model.backbone
    with torch.no_grad(), cross_view(backbone.model, cross_view_from=cross_view_from) as handle:
        return handle.encode(backbone.normalise(batch.images), [len(subset)])[0]


@pytest.mark.parametrize("cross_view_from", [0, 1, 2])
def test_the_cache_of_tokens_gives_the_vectors_of_single_objects(
    make_model: Callable[..., Model], dataset: Views, cross_view_from: int
) -> None:
    model = make_model(cross_view={"cross_view_from": cross_view_from})
    assert isinstance(suffix_of(Embedder(model)), PlainClipSuffix)
    cached, from_images = vectors(model, dataset), vectors(model, dataset, prefix_cache=False)
    for job, vector in cached.items():
        expected = one_by_one(model, dataset, job, cross_view_from)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(from_images[job], expected, atol=1e-5, rtol=0)


def test_a_tower_that_pools_otherwise_goes_the_models_own_way(
    make_model: Callable[..., Model], dataset: Views, tiny_clip_json: Path, tiny_clip_config: dict[str, Any]
) -> None:
    import json

    tiny_clip_config["vision_cfg"]["pool_type"] = "avg"
    tiny_clip_json.write_text(json.dumps(tiny_clip_config))
    model = make_model(cross_view={"cross_view_from": 1})
    assert isinstance(suffix_of(Embedder(model)), ModelSuffix)
    for job, vector in vectors(model, dataset).items():
        torch.testing.assert_close(vector, one_by_one(model, dataset, job, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("average", ["raw", "unit"])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_without_objects_of_its_own_a_model_is_averaged(
    make_model: Callable[..., Model], dataset: Views, average: str, prefix_cache: bool
) -> None:
    model = make_model()
    for (i, subset), vector in vectors(model, dataset, average=average, prefix_cache=prefix_cache).items():
        rows = torch.stack([one_by_one(model, dataset, (i, (place,)), 2) for place in subset])
        if average == "unit":
            rows = torch.nn.functional.normalize(rows, dim=-1)
        torch.testing.assert_close(vector, rows.mean(dim=0), atol=1e-5, rtol=0)


def test_a_view_is_taken_through_the_lower_blocks_once_and_a_draw_through_the_upper_ones(
    make_model: Callable[..., Model], dataset: Views, tmp_path: Path
) -> None:
    model = make_model(cross_view={"cross_view_from": 1})
    below: list[int] = []
    above: list[int] = []
    visual: Any = model.backbone.model.visual
    visual.conv1.register_forward_hook(lambda module, args, out: below.append(len(out)))
    visual.ln_post.register_forward_hook(lambda module, args, out: above.append(len(out)))
    measured(model, dataset, tmp_path)
    assert sum(below) == sum(VIEWS)
    assert max(below) <= 20
    draws = {
        (i, view_subset(seed, f"o{i}", count, n)) for i, n in enumerate(VIEWS) for count in COUNTS for seed in SEEDS
    }
    assert sum(above) == sum(len(subset) for _, subset in draws)
    assert max(above) <= 20


def test_figures_are_those_of_a_plain_loop(make_model: Callable[..., Model], dataset: Views, tmp_path: Path) -> None:
    model = make_model(cross_view={"cross_view_from": 1})
    result = measured(model, dataset, tmp_path)
    words = sorted(set(WORDS))
    prompts = model.encode_text([f"a {word.replace('_', ' ')}" for word in words]).double()
    labels = [words.index(word) for word in WORDS]
    for count in COUNTS:
        hits = {k: np.zeros((len(SEEDS), len(VIEWS))) for k in (1, 2)}
        for s, seed in enumerate(SEEDS):
            for i in range(len(VIEWS)):
                vector = one_by_one(model, dataset, (i, view_subset(seed, f"o{i}", count, VIEWS[i])), 1).double()
                cosines = torch.nn.functional.cosine_similarity(vector[None], prompts).tolist()
                order = sorted(range(len(words)), key=lambda c: -cosines[c])
                for k in hits:
                    hits[k][s, i] = labels[i] in order[:k]
        for k, right in hits.items():
            figure = result[f"duoduo.view_count/top{k}/{count}/s"]
            assert figure.value == pytest.approx(right.mean())
            assert figure.std == pytest.approx(right.mean(axis=1).std(ddof=1))
            assert figure.n == len(VIEWS)
            assert figure.low <= figure.value <= figure.high
            assert figure.samples is not None
            assert figure.samples == pytest.approx(right.mean(axis=0))
            macro = [[right[s][[own == c for own in labels]].mean() for c in range(3)] for s in range(3)]
            assert result[f"duoduo.view_count/macro_top{k}/{count}/s"].value == pytest.approx(np.mean(macro))


def test_the_cache_changes_no_figure(make_model: Callable[..., Model], dataset: Views, tmp_path: Path) -> None:
    model = make_model(cross_view={"cross_view_from": 1})
    cached = measured(model, dataset, tmp_path / "a")
    plain = measured(model, dataset, tmp_path / "b", prefix_cache=False)
    assert [figure.name for figure in cached.figures] == [figure.name for figure in plain.figures]
    for ours, theirs in zip(cached.figures, plain.figures, strict=True):
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-5)


def test_the_report_shows_one_and_all_views_and_who_has_fewer(
    make_model: Callable[..., Model], dataset: Views, tmp_path: Path
) -> None:
    result = measured(make_model(cross_view={"cross_view_from": 1}), dataset, tmp_path)
    heads = {figure.headline for figure in result.figures} - {""}
    assert heads == {"top-1 1 view s", "top-1 12 views s"}
    table = next(table for table in result.tables if table.title.startswith("Accuracy by number of views, s"))
    few = {row[0]: row[-1] for row in table.rows}
    assert few == {"1": "0", "2": "1", "5": "1", "12": "2"}
    (picture,) = result.pictures
    with Image.open(picture) as image:
        assert np.asarray(image.convert("L")).std() > 0
    x, y, _ = ViewCount.curve(result.figures, 1, "s")
    assert x == list(COUNTS)
    assert y == [result[f"duoduo.view_count/top1/{count}/s"].value for count in COUNTS]


def test_one_draw_has_no_deviation_and_all_views_none_to_speak_of(
    make_model: Callable[..., Model], dataset: Views, tmp_path: Path
) -> None:
    model = make_model(cross_view={"cross_view_from": 1})
    assert np.isnan(measured(model, dataset, tmp_path / "a", seeds=(4,)).figures[0].std)
    assert measured(model, dataset, tmp_path / "b")["duoduo.view_count/top1/12/s"].std == 0


def test_a_mean_of_raw_prompts_is_the_authors_classifier(
    make_model: Callable[..., Model], dataset: Views, tmp_path: Path
) -> None:
    """The authors' matrix, saved and read back, gives the figures of `reference`."""
    model = make_model(cross_view={"cross_view_from": 1})
    words, prompts = sorted(set(WORDS)), list(open_clip.OPENAI_IMAGENET_TEMPLATES)
    rows = [model.encode_text([p(word.replace("_", " ")) for p in prompts]).mean(dim=0) for word in words]
    np.save(tmp_path / "classes.npy", torch.stack(rows).numpy())
    reference = measured(model, dataset, tmp_path / "a", templates="openai", classifier="reference")
    matrix = measured(model, dataset, tmp_path / "b", class_matrix=str(tmp_path / "classes.npy"))
    assert [figure.value for figure in reference.figures] == [figure.value for figure in matrix.figures]
    with pytest.raises(DataError, match=r"is \(3, 16\), but there are 4 classes"):
        measured(
            model, dataset, tmp_path / "c", class_matrix=str(tmp_path / "classes.npy"), classes=(*words, "one more")
        )


def test_it_runs_from_the_command_line(store: Path, tiny_clip_json: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_clip_json), "--data", f"s={store}", "--on", "duoduo.view_count", "-o", str(tmp_path / "out")]
    assert run(["eval", *arguments]) == 0
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert "top-1 1 view s" in table
    assert "top-1 12 views s" in table
    assert mvcore.load(str(tiny_clip_json)).name == str(tiny_clip_json)
