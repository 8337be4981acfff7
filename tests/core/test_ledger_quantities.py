"""The ledger's quantities against loops in float64, in blocks of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.evaluation import consistency
from mvcore.evaluation.ledger_views import measure_views
from mvcore.evaluation.moments import WithinObjects, object_blocks
from mvcore.evaluation.rank import Spectrum
from mvcore.evaluation.retrieval import own_text_ranks
from mvcore.evaluation.similarity import Similarity
from ragged_views import ragged
from torch import Tensor
from torch.nn.functional import normalize


def measured(views: Sequence[Tensor], rows: int = 4096, **options: Any) -> dict[str, Similarity]:
    counts, packed = torch.tensor([len(v) for v in views]), torch.cat(list(views))
    return measure_views(lambda: object_blocks(packed, counts, rows), len(counts), packed.shape[1], **options)


def spectrum(views: Sequence[Tensor]) -> Spectrum:
    counts, packed = torch.tensor([len(v) for v in views]), torch.cat(list(views))
    within = WithinObjects(len(counts), packed.shape[1], torch.device("cpu"))
    for block in object_blocks(packed, counts, 64):
        within.add(block)
    return Spectrum.of(within)


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
