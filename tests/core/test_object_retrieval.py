"""Retrieval of objects: its measures on examples worked by hand and against loops, and the evaluator against loops."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mvcore
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mvcore import build
from mvcore.cli.main import run
from mvcore.config import Part
from mvcore.errors import ConfigError
from mvcore.evaluation.embedder import Embedder
from mvcore.evaluation.object_retrieval import ObjectRetrieval, held_out, object_vectors
from mvcore.evaluation.ranking import discounted_gain, recalled, reciprocal_rank
from mvcore.evaluation.results import EvalResult
from mvcore.index.nearest import Nearest
from mvcore.loading import make_run_pipeline
from mvcore.model import Model
from mvcore.parts import IndexedDataset
from mvcore.plugins import load_plugins
from mvcore_data import ViewStoreWriter
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from conftest import Lab

ID = "core.object_retrieval"

# Four queries (rows) and four objects (columns); query i belongs to object i. Its rank is 1, 2, 4 and, in a tie that
# the earlier row wins, 2.
SCORES = np.array([[0.9, 0.1, 0.3, 0.2], [0.8, 0.7, 0.1, 0.0], [0.4, 0.3, 0.1, 0.2], [0.1, 0.5, 0.2, 0.5]])


def relevance_of(scores: np.ndarray, right: Sequence[set[int]]) -> np.ndarray:
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.array([[int(i) in own for i in row] for row, own in zip(order, right, strict=True)])


def test_measures_of_a_four_by_four_example() -> None:
    relevant, one = relevance_of(SCORES, [{0}, {1}, {2}, {3}]), np.ones(4, np.int64)
    assert recalled(relevant, 1).tolist() == [1, 0, 0, 0]
    assert recalled(relevant, 3).tolist() == [1, 1, 0, 1]
    assert recalled(relevant, 9).tolist() == [1, 1, 1, 1]
    second, fourth = 1 / math.log2(3), 1 / math.log2(5)
    np.testing.assert_allclose(discounted_gain(relevant, one, 2), [1, second, 0, second])
    np.testing.assert_allclose(discounted_gain(relevant, one, 4), [1, second, fourth, second])
    np.testing.assert_allclose(reciprocal_rank(relevant), [1, 1 / 2, 1 / 4, 1 / 2])
    np.testing.assert_allclose(reciprocal_rank(relevant[:, :3]), [1, 1 / 2, 0, 1 / 2])


def test_gain_with_several_right_answers() -> None:
    relevant, right = relevance_of(SCORES[:1], [{0, 1}]), np.array([2])  # ranks 1 and 4
    best = 1 + 1 / math.log2(3)
    np.testing.assert_allclose(discounted_gain(relevant, right, 4), [(1 + 1 / math.log2(5)) / best])
    np.testing.assert_allclose(discounted_gain(relevant, right, 3), [1 / best])
    np.testing.assert_allclose(discounted_gain(relevant, right, 1), [1])


def test_the_index_ranks_the_example_as_it_is_worked_by_hand() -> None:
    _, rows = Nearest(np.eye(4, dtype=np.float32)).search(SCORES.astype(np.float32), 4)
    assert (rows == np.arange(4)[:, None]).argmax(axis=1).tolist() == [0, 1, 3, 1]


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 8))), st.integers(0, 3), st.integers(1, 10))
def test_measures_equal_loops(relevant: np.ndarray, further: int, k: int) -> None:
    right = np.maximum(1, relevant.sum(axis=1) + further)
    for row, found in enumerate(relevant.tolist()):
        gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(found, 1) if hit and rank <= k)
        best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, int(right[row])) + 1))
        ranks = [rank for rank, hit in enumerate(found, 1) if hit]
        assert recalled(relevant, k)[row] == float(bool(ranks) and ranks[0] <= k)
        assert discounted_gain(relevant, right, k)[row] == pytest.approx(gain / best)
        assert reciprocal_rank(relevant)[row] == pytest.approx(1 / ranks[0] if ranks else 0)


def test_views_held_out_are_drawn_by_seed_and_object_and_never_all() -> None:
    for count in range(1, 9):
        for asked in range(1, 9):
            drawn = [held_out(count, asked, seed, number) for seed in (0, 1) for number in range(30)]
            assert drawn == [held_out(count, asked, seed, number) for seed in (0, 1) for number in range(30)]
            if asked >= count:
                assert not any(drawn)
                continue
            assert all(len(set(places)) == asked and places == sorted(places) for places in drawn)
            assert all(0 <= place < count for places in drawn for place in places)
            assert len(set(map(tuple, drawn))) > 1
    assert {place for number in range(200) for place in held_out(4, 1, 0, number)} == {0, 1, 2, 3}


# -- the evaluator -----------------------------------------------------------------------------------------------------

COUNTS = (4, 1, 3, 2, 5, 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six objects of 1 to 5 views; two share a caption, one has none of its own but one of a view."""
    path = tmp_path_factory.mktemp("objects") / "store"
    rng = np.random.default_rng(2)
    with ViewStoreWriter(path, codec="png") as writer:
        for i, count in enumerate(COUNTS):
            own = rng.integers(0, 256, (32, 32, 3))
            views = [((own + rng.integers(0, 256, own.shape)) // 2).astype(np.uint8) for _ in range(count)]
            if i == 4:
                writer.add_object(f"o{i}", views, view_captions=[["from above"], *[[]] * (count - 1)], category="cup")
            else:
                texts = ["a thing", f"thing {i}"] if i < 2 else [f"thing {i}"]
                writer.add_object(f"o{i}", views, captions=texts, category="cup" if i % 2 else "boat")
    return path


def models(lab: Lab) -> dict[str, Model]:
    encoder = Part(id="core.open_clip", args={"model": str(lab.clip), "pretrained": None})
    adapters = {"cross": Part(id="duoduo.cross_view", args={"cross_view_from": 0})}
    return {"plain": mvcore.load(lab.clip), "cross-view": Model(make_run_pipeline(encoder, adapters, seed=0).eval())}


def opened(store: Path) -> IndexedDataset:
    registered = load_plugins().spec("dataset", "data.views")
    return build.make(registered, build.options(registered, {"path": str(store), "image_size": 32}, "test"))


def encoded(model: Model, data: IndexedDataset, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
    """Unit vectors in float64 of objects, one call each."""
    found = []
    for i, places in wanted:
        images = data.load(i, [data.views_of(i)[place] for place in places], None).images
        assert images is not None
        found.append(normalize(model.encode_views([images.permute(0, 2, 3, 1)])[0].double(), dim=0))
    return found


def loops(queries: Sequence[Tensor], objects: Sequence[Tensor], right: Sequence[set[int]], k: int) -> dict[str, float]:
    """Mean recall and gain at k, and mean reciprocal rank."""
    recall, gain, mrr = [], [], []
    for query, own in zip(queries, right, strict=True):
        cosines = [float(query @ vector) for vector in objects]
        order = sorted(range(len(objects)), key=lambda i, c=cosines: (-c[i], i))
        ranks = [rank for rank, i in enumerate(order, 1) if i in own]
        recall.append(float(ranks[0] <= k))
        best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(own)) + 1))
        gain.append(sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k) / best)
        mrr.append(1 / ranks[0])
    return {f"r{k}": float(np.mean(recall)), f"ndcg{k}": float(np.mean(gain)), "mrr": float(np.mean(mrr))}


@pytest.mark.parametrize("kind", ["plain", "cross-view"])
def test_objects_found_by_texts_equal_loops(lab: Lab, store: Path, tmp_path: Path, kind: str) -> None:
    model, data = models(lab)[kind], opened(store)
    result = ObjectRetrieval(topk=[1, 2])(model, {"all": data}, tmp_path)
    objects = encoded(model, data, [(i, range(count)) for i, count in enumerate(COUNTS)])
    texts = {"a thing": {0, 1}, "thing 0": {0}, "thing 1": {1}, "thing 2": {2}, "thing 3": {3}, "thing 5": {5}}
    texts["from above"] = {4}
    queries = list(normalize(model.encode_text(list(texts)).double(), dim=1))
    for k in (1, 2):
        for short, value in loops(queries, objects, list(texts.values()), k).items():
            figure = result[f"{ID}/text_{short}/all"]
            assert figure.value == pytest.approx(value)
            assert figure.n == 7
            assert figure.low <= figure.value <= figure.high


@pytest.mark.parametrize("kind", ["plain", "cross-view"])
@pytest.mark.parametrize("query_views", [1, 2])
def test_objects_found_by_views_held_out_equal_loops(
    lab: Lab, store: Path, tmp_path: Path, kind: str, query_views: int
) -> None:
    model, data = models(lab)[kind], opened(store)
    model.views_per_batch = 4
    result = ObjectRetrieval(topk=[1, 2], query_views=query_views, seed=3)(model, {"all": data}, tmp_path)
    drawn = [held_out(count, query_views, 3, i) for i, count in enumerate(COUNTS)]
    rest = [[v for v in range(count) if v not in drawn[i]] for i, count in enumerate(COUNTS)]
    assert all(rest)
    objects = encoded(model, data, list(enumerate(rest)))
    asked = [i for i, places in enumerate(drawn) if places]
    queries = encoded(model, data, [(i, drawn[i]) for i in asked])
    for k in (1, 2):
        for short, value in loops(queries, objects, [{i} for i in asked], k).items():
            figure = result[f"{ID}/image_{short}/all"]
            assert figure.value == pytest.approx(value)
            assert figure.n == len(asked) == sum(count > query_views for count in COUNTS)


def test_a_category_is_a_query_for_all_its_objects(lab: Lab, store: Path, tmp_path: Path) -> None:
    model, data = mvcore.load(lab.clip), opened(store)
    result = ObjectRetrieval(text="category", template="one {}", topk=[3])(model, {"all": data}, tmp_path)
    objects = encoded(model, data, [(i, range(count)) for i, count in enumerate(COUNTS)])
    queries = list(normalize(model.encode_text(["one boat", "one cup"]).double(), dim=1))
    for short, value in loops(queries, objects, [{0, 2}, {1, 3, 4, 5}], 3).items():
        assert result[f"{ID}/text_{short}/all"].value == pytest.approx(value)
        assert result[f"{ID}/text_{short}/all"].n == 2


def test_ranks_below_the_depth_count_nothing(lab: Lab, store: Path, tmp_path: Path) -> None:
    model, data = mvcore.load(lab.clip), opened(store)

    def measured(depth: int) -> EvalResult:
        return ObjectRetrieval(topk=[1], depth=depth)(model, {"all": data}, tmp_path)

    shallow, deep = measured(1), measured(100)
    assert shallow[f"{ID}/text_mrr/all"].value == shallow[f"{ID}/text_r1/all"].value
    assert deep[f"{ID}/text_mrr/all"].value > shallow[f"{ID}/text_mrr/all"].value
    assert "below rank 6" in deep[f"{ID}/text_mrr/all"].definition


def test_a_model_without_an_object_feature_passes_once_over_the_views(lab: Lab, store: Path, tmp_path: Path) -> None:
    model, data = mvcore.load(lab.clip), opened(store)
    loaded: list[int] = []
    load = data.load
    data.load = lambda i, views, rng: (loaded.extend(views), load(i, views, rng))[1]  # pyright: ignore
    ObjectRetrieval()(model, {"all": data}, tmp_path)
    assert sorted(loaded) == list(range(sum(COUNTS)))
    vectors = object_vectors(Embedder(model), "all", data, [(4, [1, 3]), (0, [2])])
    torch.testing.assert_close(
        normalize(vectors.double(), dim=1), torch.stack(encoded(model, data, [(4, (1, 3)), (0, (2,))]))
    )


def test_objects_of_one_view_ask_nothing_and_texts_can_be_left_out(lab: Lab, tmp_path: Path) -> None:
    with ViewStoreWriter(tmp_path / "store", codec="png") as writer:
        for name in "ab":
            writer.add_object(name, [np.full((32, 32, 3), ord(name), np.uint8)])
    model, sources = mvcore.load(lab.clip), {"all": opened(tmp_path / "store")}
    assert ObjectRetrieval(text="none")(model, sources, tmp_path).figures == []
    with pytest.raises(ConfigError, match=r"core\.object_retrieval: source 'all' has no caption"):
        ObjectRetrieval(text="captions")(model, sources, tmp_path)


def test_the_program_measures_it(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run(["eval", str(lab.clip), "--data", str(lab.store), "--on", ID, "-o", str(output)]) == 0
    result = json.loads((output / "clip.json" / ID / "result.json").read_text())
    names = {figure["name"] for figure in result["figures"]}
    kinds = [f"{kind}_{short}" for kind in ("text", "image") for short in ("r1", "r5", "r10", "ndcg5", "mrr")]
    assert {f"{ID}/{kind}/store" for kind in kinds} <= names
    assert "object R@1" in " ".join(capsys.readouterr().out.split())
