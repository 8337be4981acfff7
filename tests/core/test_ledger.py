"""The ledger's evaluator on given vectors: its rows, what it leaves out, what it refuses, and its maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.errors import ConfigError, DataError
from mvcore.evaluation import consistency
from mvcore.evaluation.ledger import Ledger
from mvcore.evaluation.ledger_maps import MOST_ROWS, load_maps
from mvcore.evaluation.options import LEDGER_MISSING
from mvcore.evaluation.runner import evaluate
from mvcore.evaluation.zero_shot import ZeroShot
from mvcore.model import Model, Pipeline
from mvcore.parts import Backbone
from mvcore.types import Cameras, ViewBatch
from ragged_views import DIM, look_at, ragged
from torch import Tensor, nn
from torch.nn.functional import normalize

WORDS = ("cup", "fish", "lamp", "boat")


class Given(Backbone):
    """Views are the batch's own vectors; the vector of a text is looked up."""

    dims: Mapping[str, int] = {"view": DIM, "text": DIM}
    image_size = None
    library = "test"

    def __init__(self, texts: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.texts = texts
        self.provides = frozenset({"view"} if texts is None else {"view", "text"})
        self.net = nn.Linear(1, 1)
        self.encoded_views = self.encoded_texts = 0

    @property
    def model(self) -> nn.Module:
        return self.net

    def set_trainable(self, mode: str) -> None:
        self.requires_grad_(mode == "all")

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "view" in keys:
            self.encoded_views += batch.n_views
            found["view"] = batch.embeddings["x/image"]
        if "text" in keys:
            assert self.texts is not None
            self.encoded_texts += len(batch.captions)
            found["text"] = torch.stack([self.texts[caption] for caption in batch.captions])
        return found


class Vectors:
    """Objects that are vectors, with captions, categories and cameras."""

    provides = frozenset({"embeddings", "captions"})
    image_size = 1

    def __init__(self, views: Sequence[Tensor], *, captions: bool = True, cameras: Tensor | None = None) -> None:
        self.views = [v.float() for v in views]
        self.counts = [len(v) for v in views]
        self.starts = np.cumsum([0, *self.counts]).tolist()
        self.store_key, self.n_store_objects, self.n_store_views = "given", len(views), sum(self.counts)
        self.captions, self.cameras = captions, cameras
        self.categories: list[str | None] = [WORDS[i % len(WORDS)] for i in range(len(views))]

    def __len__(self) -> int:
        return len(self.views)

    def views_of(self, i: int) -> Sequence[int]:
        return range(self.starts[i], self.starts[i + 1])

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        fields: dict[str, Any] = {}
        if self.captions:
            fields = {
                "captions": (f"object {i}",),
                "caption_object": torch.tensor([0]),
                "caption_view": torch.tensor([-1]),
            }
        if self.cameras is not None:
            fields["cameras"] = Cameras(torch.eye(3).repeat(len(views), 1, 1), self.cameras[list(views)])
        rows = [v - self.starts[i] for v in views]
        return ViewBatch.make(
            [len(rows)],
            embeddings={"x/image": self.views[i][rows]},
            object_ids=torch.tensor([i]),
            view_ids=torch.tensor(list(views)),
            **fields,
        )

    def object_name(self, i: int) -> str:
        return f"object-{i:03d}"

    def category(self, i: int) -> str | None:
        return self.categories[i]


def vocabulary(n: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    texts = [f"object {i}" for i in range(n)] + [f"a photo of a {word}." for word in WORDS]
    return {text: torch.randn(DIM, generator=rng) for text in texts}


def made(views: Sequence[Tensor], **options: Any) -> tuple[Model, Vectors]:
    return Model(Pipeline(Given(vocabulary(len(views))), []), views_per_batch=7), Vectors(views, **options)


def test_the_ledger_has_every_row_with_its_definition(tmp_path: Path) -> None:
    rig = look_at(torch.tensor([0.0, 120, 240] * 2), torch.tensor([10.0] * 3 + [40.0] * 3))
    views = ragged([6] * 8, seed=1)
    model, data = made(views, cameras=rig.repeat(8, 1, 1))
    result = Ledger()(model, {"shapes": data}, tmp_path)
    whole = consistency(torch.stack([vocabulary(8)[f"object {i}"] for i in range(8)]), torch.stack(views).float())
    for name in ("same_object", "different_object", "text_to_image"):
        figure, expected = result[f"core.ledger/{name}/shapes"], getattr(whole, name)
        assert (figure.value, figure.std, figure.n) == pytest.approx(
            (expected.mean, expected.std, expected.n), abs=1e-6
        )
        assert "ddof 1" in figure.definition
        assert figure.low <= figure.value <= figure.high
        assert figure.headline == ""
    # A17: the numbers of pairs.
    assert result["core.ledger/same_object/shapes"].n == 8 * 6 * 5
    assert result["core.ledger/different_object/shapes"].n == 8 * 7 * 36
    assert result["core.ledger/text_to_image/shapes"].n == 8 * 6
    names = {figure.name for figure in result.figures}
    for what in (
        "separation",
        "worst_view",
        "participation_ratio",
        "centred_participation_ratio",
        "effective_rank",
        "own_text",
        "zero_shot",
    ):
        assert f"core.ledger/{what}/shapes" in names
    assert {name.rpartition("/")[2] for name in names if "/elevation/" in name} == {"10", "40"}
    assert {name for name in names if "/angle/" in name} == {f"core.ledger/angle/shapes/{a}" for a in (30, 90, 120)}
    assert not result.tables
    assert len({figure.items for figure in result.figures}) == 1
    assert all("shapes" in figure.definition for figure in result.figures)


def test_zero_shot_and_own_text_are_the_other_evaluators_figures(tmp_path: Path) -> None:
    model, data = made(ragged([3, 4, 2, 5, 3], seed=2))
    result = Ledger()(model, {"shapes": data}, tmp_path)
    zero = ZeroShot(templates=["a photo of a {}."])(model, {"shapes": data}, tmp_path)
    assert result["core.ledger/zero_shot/shapes"].value == zero["core.zero_shot/top1/shapes"].value
    assert "'a photo of a {}.'" in result["core.ledger/zero_shot/shapes"].definition
    texts = torch.stack([vocabulary(5)[f"object {i}"] for i in range(5)]).double()
    hits = [
        int((normalize(v.double(), dim=0) @ normalize(texts, dim=1).T).argmax()) == i
        for i, some in enumerate(data.views)
        for v in some
    ]
    figure = result["core.ledger/own_text/shapes"]
    assert (figure.value, figure.n) == (pytest.approx(np.mean(hits)), 17)
    assert "5 texts" in figure.definition


def test_own_texts_of_many_objects_are_told_apart_among_some_of_them(tmp_path: Path) -> None:
    model, data = made(ragged([3] * 10, seed=2))
    figure = Ledger(retrieval_objects=4)(model, {"shapes": data}, tmp_path)["core.ledger/own_text/shapes"]
    assert figure.n == 12
    assert figure.samples is not None
    assert figure.samples.shape == (4,)
    assert "4 of 10 objects" in figure.definition
    assert "4 texts" in figure.definition


def test_without_texts_the_rows_are_missing_and_the_table_says_so(tmp_path: Path) -> None:
    views = ragged([3] * 4)
    result = Ledger()(Model(Pipeline(Given(None), [])), {"shapes": Vectors(views)}, tmp_path)
    names = {figure.name.split("/")[1] for figure in result.figures}
    assert not {"text_to_image", "own_text", "zero_shot"} & names
    (table,) = result.tables
    assert table.title == LEDGER_MISSING
    assert list(table.rows) == [
        ("shapes", "text_to_image, own_text", "the model encodes no text"),
        ("shapes", "zero_shot", "the model encodes no text"),
    ]


def test_a_text_that_cannot_be_encoded_is_named_not_fatal(tmp_path: Path) -> None:
    class Refusing(Given):
        def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
            if "text" in keys:
                raise DataError(f"no vector is stored for the text {batch.captions[0]!r}")
            return super().encode(batch, keys)

    model, data = Model(Pipeline(Refusing({}), [])), Vectors(ragged([3] * 4))
    result = Ledger()(model, {"shapes": data}, tmp_path)
    assert [row[2] for row in result.tables[0].rows] == [
        "no vector is stored for the text 'object 0'",
        "no vector is stored for the text 'a photo of a boat.'",
    ]
    with pytest.raises(DataError, match="object 0"):
        Ledger(text="captions")(model, {"shapes": data}, tmp_path)


def test_views_and_texts_of_unequal_width_are_not_compared(tmp_path: Path) -> None:
    model = Model(Pipeline(Given(vocabulary(4)), []))
    result = Ledger(zero_shot=None)(model, {"shapes": Vectors([v[:, :4] for v in ragged([3] * 4)])}, tmp_path)
    assert result.tables[0].rows[0][2] == "views are 4 wide and texts 6"


def test_objects_of_one_view_have_no_pairs_of_their_own(tmp_path: Path) -> None:
    model, data = made(ragged([1] * 5))
    names = {figure.name.split("/")[1] for figure in Ledger()(model, {"shapes": data}, tmp_path).figures}
    assert "different_object" in names
    assert not {"same_object", "separation", "worst_view"} & names


def test_one_object_alone_has_no_others(tmp_path: Path) -> None:
    model, data = made(ragged([4]))
    result = Ledger()(model, {"shapes": data}, tmp_path)
    assert "core.ledger/different_object/shapes" not in {figure.name for figure in result.figures}
    assert math.isnan(result["core.ledger/same_object/shapes"].low)


def test_a_broken_vector_is_named(tmp_path: Path) -> None:
    views = ragged([3] * 4)
    views[1][2] = 0
    model, data = made(views)
    with pytest.raises(DataError, match=r"core\.ledger on source 'shapes': views: row 5 has length 0"):
        Ledger()(model, {"shapes": data}, tmp_path)


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    model, data = made(ragged([3] * 4))
    with pytest.raises(ConfigError, match=r"core\.ledger: no source 'others'"):
        Ledger(sources=["others"])(model, {"shapes": data}, tmp_path)


def test_views_and_texts_are_encoded_once_for_all_evaluators(tmp_path: Path) -> None:
    model, data = made(ragged([3] * 8))
    backbone: Any = model.backbone
    evaluators = {"core.ledger": Ledger(), "core.zero_shot": ZeroShot(templates=["a photo of a {}."])}
    evaluate(model, evaluators, {"shapes": data}, tmp_path)
    assert backbone.encoded_views == 24
    assert backbone.encoded_texts == 8 + len(WORDS)


# -- A30: what a collapsed head can reach ----------


def test_a30_a_collapsed_model_cannot_beat_the_mean_text(tmp_path: Path) -> None:
    texts = normalize(torch.stack([vocabulary(20)[f"object {i}"] for i in range(20)]).double(), dim=1)
    bound = float(texts.mean(0).norm())
    model, data = made([texts.mean(0).repeat(3, 1)] * 20)
    assert Ledger()(model, {"shapes": data}, tmp_path)["core.ledger/text_to_image/shapes"].value == pytest.approx(
        bound, abs=1e-6
    )
    elsewhere = torch.randn(DIM, generator=torch.Generator().manual_seed(9)).double()
    model, data = made([elsewhere.repeat(3, 1)] * 20)
    result = Ledger()(model, {"shapes": data}, tmp_path)
    assert result["core.ledger/text_to_image/shapes"].value < bound
    # The ledger shows what is lost: nothing is told apart, in one direction.
    assert result["core.ledger/same_object/shapes"].value == pytest.approx(1)
    assert result["core.ledger/own_text/shapes"].value <= 1 / 20
    assert result["core.ledger/participation_ratio/shapes"].value == pytest.approx(1)


# -- maps ----------


def test_a21_the_map_holds_what_the_figure_says(tmp_path: Path) -> None:
    model, data = made(ragged([36] * 5, seed=3))
    figure = Ledger()(model, {"shapes": data}, tmp_path)["core.ledger/same_object/shapes"]
    maps = load_maps(tmp_path / "maps-shapes.npz")
    assert maps.mean.shape == maps.std.shape == (36, 36)
    np.testing.assert_array_equal(maps.mean, maps.mean.T)
    np.testing.assert_array_equal(maps.mean.diagonal(), 1)
    np.testing.assert_array_equal(maps.std.diagonal(), 0)
    assert maps.mean[~np.eye(36, dtype=bool)].mean() == pytest.approx(figure.value, abs=1e-6)
    assert np.isnan(maps.elevations).all()


def test_a22_views_of_one_elevation_make_blocks(tmp_path: Path) -> None:
    heights = torch.tensor([10.0, 40.0, 70.0]).repeat_interleave(12)
    rig = look_at(torch.arange(36) % 12 * 30.0, heights)
    rng = torch.Generator().manual_seed(0)
    own = torch.randn(3, DIM, generator=rng, dtype=torch.float64).repeat_interleave(12, 0)
    views = [own + 0.3 * torch.randn(36, DIM, generator=rng, dtype=torch.float64) for _ in range(6)]
    model, data = made(views, cameras=rig.repeat(6, 1, 1))
    Ledger()(model, {"shapes": data}, tmp_path)
    maps = load_maps(tmp_path / "maps-shapes.npz")
    np.testing.assert_allclose(maps.elevations, heights.numpy(), atol=1e-3)
    np.testing.assert_allclose(np.abs(maps.azimuths[:6]), np.arange(6) * 30, atol=1e-3)
    means = maps.mean.reshape(3, 12, 3, 12).mean(axis=(1, 3))
    assert (means.diagonal() > means[~np.eye(3, dtype=bool)].max() + 0.1).all()


def test_the_all_pairs_map_is_bounded_and_ordered_by_category(tmp_path: Path) -> None:
    model, data = made(ragged([7] * 150, seed=3))
    Ledger()(model, {"shapes": data}, tmp_path)
    maps = load_maps(tmp_path / "maps-shapes.npz")
    assert 300 <= len(maps.pairs) <= MOST_ROWS
    assert list(maps.categories) == sorted(maps.categories)
    assert set(maps.categories) == set(WORDS)
    first = int(maps.objects[0].removeprefix("object-"))
    unit = normalize(data.views[first][:2].double(), dim=1)
    assert maps.pairs[0, 0] == pytest.approx(1, abs=1e-3)
    assert maps.pairs[0, 1] == pytest.approx(float(unit[0] @ unit[1]), abs=1e-3)


def test_objects_of_unequally_many_views_have_no_map_by_view(tmp_path: Path) -> None:
    model, data = made(ragged([3, 4, 2]))
    Ledger()(model, {"shapes": data}, tmp_path)
    maps = load_maps(tmp_path / "maps-shapes.npz")
    assert maps.mean.shape == (0, 0)
    assert maps.pairs.shape == (9, 9)


def test_damaged_maps_are_named(tmp_path: Path) -> None:
    path = tmp_path / "maps-x.npz"
    with pytest.raises(DataError, match=r"maps-x\.npz: no maps"):
        load_maps(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"maps-x\.npz: no maps"):
        load_maps(path)
    arrays: dict[str, Any] = {name: np.array([object()]) for name in ("mean", "std")}
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"maps-x\.npz: no maps"):
        load_maps(path)
