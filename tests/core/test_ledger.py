"""The ledger's quantities against loops in float64, in blocks of any size, and the evaluator on given vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.errors import ConfigError, DataError
from mvcore.evaluation import consistency
from mvcore.evaluation.ledger import Ledger
from mvcore.evaluation.ledger_maps import MOST_ROWS, load_maps
from mvcore.evaluation.ledger_views import measure_views
from mvcore.evaluation.moments import WithinObjects, object_blocks
from mvcore.evaluation.options import LEDGER_MISSING
from mvcore.evaluation.rank import Spectrum
from mvcore.evaluation.retrieval import own_text_ranks
from mvcore.evaluation.runner import evaluate
from mvcore.evaluation.similarity import Similarity
from mvcore.evaluation.zero_shot import ZeroShot
from mvcore.model import Model, Pipeline
from mvcore.parts import Backbone
from mvcore.types import Cameras, ViewBatch
from torch import Tensor, nn
from torch.nn.functional import normalize

DIM = 6


def ragged(counts: Sequence[int], dim: int = DIM, seed: int = 0, mean: float = 0.0) -> list[Tensor]:
    """Views of each object in float64: a centre of its own and noise."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), dim, generator=rng, dtype=torch.float64) + mean
    return [
        c + 0.7 * torch.randn(n, dim, generator=rng, dtype=torch.float64) for c, n in zip(centres, counts, strict=True)
    ]


def measured(views: Sequence[Tensor], rows: int = 4096, **options: Any) -> dict[str, Similarity]:
    counts, packed = torch.tensor([len(v) for v in views]), torch.cat(list(views))
    return measure_views(lambda: object_blocks(packed, counts, rows), len(counts), packed.shape[1], **options)


def spectrum(views: Sequence[Tensor]) -> Spectrum:
    counts, packed = torch.tensor([len(v) for v in views]), torch.cat(list(views))
    within = WithinObjects(len(counts), packed.shape[1], torch.device("cpu"))
    for block in object_blocks(packed, counts, 64):
        within.add(block)
    return Spectrum.of(within)


def look_at(azimuths: Tensor, elevations: Tensor) -> Tensor:
    """(N, 4, 4) cameras at distance 2 that look at the origin, Y up."""
    az, el = torch.deg2rad(azimuths.double()), torch.deg2rad(elevations.double())
    position = 2 * torch.stack([el.cos() * az.sin(), el.sin(), el.cos() * az.cos()], dim=1)
    forward = normalize(-position, dim=1)
    right = normalize(torch.linalg.cross(forward, torch.tensor([[0.0, 1, 0]]).double().expand_as(forward)), dim=1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    matrix = torch.eye(4).double().repeat(len(az), 1, 1)
    matrix[:, :3, :3], matrix[:, :3, 3] = rotation, -(rotation @ position[:, :, None]).squeeze(2)
    return matrix.float()


# -- quantities of views against loops ----------


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=2, max_size=7), seed=st.integers(0, 1000), rows=st.integers(1, 30))
def test_every_quantity_equals_a_loop_in_blocks_of_any_size(counts: list[int], seed: int, rows: int) -> None:
    views = ragged(counts, seed=seed, mean=1.0)
    unit = [normalize(v, dim=1) for v in views]
    found = measured(views, rows)
    same = [float(a @ b) for v in unit for a, b in itertools.permutations(v, 2)]
    different = [float(a @ b) for v, w in itertools.permutations(unit, 2) for a in v for b in w]
    every = torch.cat(unit)
    squares = [float(a @ b) ** 2 for a in every for b in every]
    assert found["different_object"].mean == pytest.approx(np.mean(different), abs=1e-9)
    assert found["different_object"].std == pytest.approx(np.std(different, ddof=1), abs=1e-7)
    assert found["different_object"].n == len(different)
    if same:
        assert found["same_object"].mean == pytest.approx(np.mean(same), abs=1e-9)
        assert found["separation"].mean == pytest.approx(np.mean(same) - np.mean(different), abs=1e-9)
        worst = [
            min(np.mean([float(a @ b) for j, b in enumerate(v) if j != i]) for i, a in enumerate(v))
            for v in unit
            if len(v) > 1
        ]
        assert found["worst_view"].mean == pytest.approx(np.mean(worst), abs=1e-9)
        assert found["worst_view"].n == len(worst)
    else:
        assert not {"same_object", "separation", "worst_view"} & set(found)
    assert found["participation_ratio"].mean == pytest.approx(1 / np.mean(squares), rel=1e-9)
    singular = torch.linalg.svdvals(every).numpy()
    share = singular / singular.sum()
    entropy = -sum(p * math.log(p) for p in share if p > 0)
    assert found["effective_rank"].mean == pytest.approx(math.exp(entropy), rel=1e-6)
    centred = every - every.mean(0)
    dots = (centred @ centred.T).numpy()
    ratio = np.trace(dots) ** 2 / (dots**2).sum()
    assert found["centred_participation_ratio"].mean == pytest.approx(ratio, rel=1e-6)
    for value in found.values():
        assert value.samples.mean() == pytest.approx(value.mean, abs=1e-9)
        assert value.samples.shape == (len(counts),)


@pytest.mark.parametrize("rows", [1, 2, 5, 17, 64, 1000])
def test_a17_any_cut_into_blocks_gives_the_one_block_result(rows: int) -> None:
    views = ragged([4] * 23, seed=3)
    axes = normalize(torch.randn(92, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
    heights = torch.linspace(-80, 80, 92, dtype=torch.float64)
    whole = measured(views, 10_000, axes=axes, elevations=heights)
    pieces = measured(views, rows, axes=axes, elevations=heights)
    assert list(whole) == list(pieces)
    assert any(name.startswith("angle/") for name in whole)
    assert any(name.startswith("elevation/") for name in whole)
    for name, value in whole.items():
        other = pieces[name]
        assert (value.mean, value.n) == pytest.approx((other.mean, other.n), abs=1e-12)
        assert value.std == pytest.approx(other.std, abs=1e-9, nan_ok=True)
        np.testing.assert_allclose(value.samples, other.samples, atol=1e-9)


def test_the_one_batch_function_gives_the_same() -> None:
    views = ragged([3, 5, 2, 4], seed=5)
    found, packed = measured(views, 3), torch.cat(views)
    whole = consistency(None, packed, torch.tensor([3, 5, 2, 4]))
    for name in ("same_object", "different_object"):
        a, b = found[name], getattr(whole, name)
        assert (a.mean, a.std, a.n) == pytest.approx((b.mean, b.std, b.n), abs=1e-9)


def test_a19_pooled_variance_is_the_sum_of_both_kinds() -> None:
    views = torch.stack(ragged([6] * 12, seed=7))
    unit = normalize(views, dim=2)
    cosines = unit @ unit.mT
    off = ~torch.eye(6, dtype=torch.bool)
    entries = cosines[:, off]
    by_law = float(entries.var(0, unbiased=False).mean() + entries.mean(0).var(unbiased=False))
    found = measured(list(views))["same_object"]
    assert found.std**2 * (found.n - 1) / found.n == pytest.approx(by_law, rel=1e-9)


# -- rank ----------


def test_a20_clusters_have_their_number_as_rank() -> None:
    antipodal = [torch.tensor([[sign, 0.0, 0.0]] * 4).double() for sign in (1.0, -1.0, 1.0, -1.0)]
    assert spectrum(antipodal).participation_ratio == pytest.approx(1)
    assert spectrum(antipodal).centred_participation_ratio == pytest.approx(1)
    assert spectrum(antipodal).effective_rank == pytest.approx(1, abs=1e-6)
    clusters = [torch.eye(7)[[k]].repeat(3, 1).double() for k in (0, 1, 2, 3) * 2]
    assert spectrum(clusters).participation_ratio == pytest.approx(4)
    assert spectrum(clusters).effective_rank == pytest.approx(4, abs=1e-5)
    # About their mean, k equally far clusters span k - 1 directions.
    assert spectrum(clusters).centred_participation_ratio == pytest.approx(3)


def test_collapse_to_one_vector_has_rank_one_and_no_centred_rank() -> None:
    found = measured([torch.ones(4, 5).double()] * 6)
    assert found["participation_ratio"].mean == pytest.approx(1)
    assert found["effective_rank"].mean == pytest.approx(1, abs=1e-5)
    assert "centred_participation_ratio" not in found
    assert found["same_object"].mean == pytest.approx(1)
    assert found["separation"].mean == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["participation_ratio", "centred_participation_ratio", "effective_rank"])
def test_a_values_per_object_are_its_influence_on_the_rank(name: str) -> None:
    """Weighing one object's views slightly more moves the figure by its influence."""
    counts, step = [3, 5, 4, 6, 3], 4000
    views = ragged(counts, seed=11, mean=0.5)
    base = measured(views)[name]
    n = sum(counts)
    # As every object step times, and object i once more.
    for i, value in enumerate(base.samples):
        unit = normalize(torch.cat(views), dim=1)
        weights = torch.full((n,), float(step), dtype=torch.float64)
        weights[sum(counts[:i]) : sum(counts[: i + 1])] += 1
        moment = (unit * weights[:, None]).T @ unit / weights.sum()
        mean = (unit * weights[:, None]).sum(0) / weights.sum()
        values, basis = torch.linalg.eigh(moment)
        moved = getattr(Spectrum(values.clamp_min(0), basis, basis.T @ mean), name)
        # Its influence is scaled to samples whose mean is the figure: O / N a view.
        per_view = (moved - base.mean) * weights.sum() / 1
        assert value - base.mean == pytest.approx(float(per_view) * len(counts) / n, rel=5e-3, abs=2e-3)


# -- viewpoints ----------


def test_similarity_by_angle_and_elevation_equals_loops() -> None:
    rng = np.random.default_rng(2)
    counts = [5, 1, 4, 6]
    views = ragged(counts, seed=2)
    unit = torch.cat([normalize(v, dim=1) for v in views]).numpy()
    axes = rng.normal(size=(16, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    axes[3] = np.nan
    heights = rng.uniform(-90, 90, 16)
    heights[7] = np.nan
    found = measured(
        views,
        4,
        axes=torch.from_numpy(axes),
        elevations=torch.from_numpy(heights),
        angle_step=20.0,
        elevation_step=15.0,
    )
    owner = np.repeat(np.arange(4), counts)
    by_angle: dict[str, list[float]] = {}
    by_height: dict[str, list[float]] = {}
    for i, j in itertools.permutations(range(16), 2):
        if owner[i] != owner[j]:
            continue
        cosine = float(unit[i] @ unit[j])
        if not np.isnan(axes[[i, j]]).any():
            angle = math.degrees(math.acos(np.clip(axes[i] @ axes[j], -1, 1)))
            by_angle.setdefault(f"angle/{20 * round(angle / 20)}", []).append(cosine)
        if not np.isnan(heights[i]):
            by_height.setdefault(f"elevation/{15 * round(heights[i] / 15)}", []).append(cosine)
    for kind, expected in (("angle/", by_angle), ("elevation/", by_height)):
        assert {name for name in found if name.startswith(kind)} == set(expected)
        for name, values in expected.items():
            assert found[name].n == len(values)
            assert found[name].mean == pytest.approx(np.mean(values), abs=1e-9)


def test_a_regular_rig_falls_into_the_bins_that_it_is_named_by() -> None:
    batch_axes = -normalize(
        torch.tensor([[math.sin(math.radians(a)), 0.0, math.cos(math.radians(a))] for a in range(0, 360, 30)]), dim=1
    )
    found = measured(ragged([12] * 3), axes=batch_axes.repeat(3, 1).double())
    counts = {name: value.n for name, value in found.items() if name.startswith("angle/")}
    # 12 views: each has two others at 30 to 150 degrees and one at 180.
    assert counts == {**{f"angle/{a}": 3 * 24 for a in range(30, 180, 30)}, "angle/180": 3 * 12}


# -- own texts ----------


@pytest.mark.parametrize("cells", [1, 7, 1000])
def test_own_text_ranks_equal_a_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvcore.evaluation.retrieval._CELLS", cells)
    rng = torch.Generator().manual_seed(4)
    views, texts = torch.randn(9, 4, generator=rng), torch.randn(5, 4, generator=rng)
    texts[4] = texts[0]
    own = {0: {0}, 1: {0, 1}, 2: {1}, 3: {2}, 5: {3}, 6: {3}, 7: {4}, 8: {0, 4}}
    pairs = [(v, t) for v, some in own.items() for t in some]
    rows, columns = torch.tensor(pairs[::-1]).T
    found = own_text_ranks(views, texts, rows, columns)
    cosines = normalize(views.double(), dim=1) @ normalize(texts.double(), dim=1).T
    for v in range(9):
        if v not in own:
            assert found[v] == -1
            continue
        best = max(float(cosines[v, t]) for t in own[v])
        assert found[v] == sum(float(cosines[v, t]) >= best for t in range(5) if t not in own[v])


# -- the evaluator ----------

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
