"""Intervals, ratio estimates, paired differences and means over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.errors import DataError
from mvcore.evaluation.results import EvalResult, Figure, Table, fingerprint, load_result, save_result
from mvcore.evaluation.statistics import (
    bootstrap_interval,
    figure_over_objects,
    group_means,
    mean_over_seeds,
    paired_difference,
    ratio_samples,
)

RNG = np.random.default_rng(7)


def figure(samples: np.ndarray, name: str = "a/b/c", items: str = "") -> Figure:
    return figure_over_objects(name, samples, "A thing.", n=len(samples), items=items)


def test_interval_has_the_width_of_the_normal_one() -> None:
    samples = RNG.normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(samples)
    half = 1.96 * samples.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(samples.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(samples.mean() + half, abs=0.15 * half)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for i in range(200):
        low, high = bootstrap_interval(np.random.default_rng(i).exponential(1.0, 60), resamples=400, seed=i)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_repeats_and_follows_its_seed() -> None:
    samples = RNG.normal(size=50)
    assert bootstrap_interval(samples) == bootstrap_interval(samples)
    assert bootstrap_interval(samples) != bootstrap_interval(samples, seed=1)


def test_interval_is_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = RNG.normal(size=(3, 40))
    means = []
    for cells in (40, 1 << 21):
        monkeypatch.setattr("mvcore.evaluation.statistics._CELLS", cells)
        means.append(np.array(bootstrap_interval(samples, resamples=4000)))
    np.testing.assert_allclose(means[0], means[1], atol=0.03)


@pytest.mark.parametrize("samples", [np.array([1.0]), np.array([1.0, math.nan]), np.array([[1.0], [2.0]])])
def test_no_interval_where_none_can_be_had(samples: np.ndarray) -> None:
    low, high = bootstrap_interval(samples)
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((2, 2, 2))])
def test_wrong_shapes_are_refused(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="samples must be"):
        bootstrap_interval(samples)


def test_seeds_widen_the_interval() -> None:
    objects = RNG.normal(size=200)
    agreeing, apart = np.stack([objects] * 4), np.stack([objects + shift for shift in (-1.0, -0.3, 0.4, 0.9)])
    widths = [np.diff(bootstrap_interval(samples))[0] for samples in (objects, agreeing, apart)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] > 3 * widths[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 9)), min_size=1, max_size=20))
def test_ratio_samples_average_to_the_pooled_mean(pairs: list[tuple[float, int]]) -> None:
    counts = np.array([n for _, n in pairs], dtype=float)
    sums = np.array([value for value, _ in pairs]) * counts
    for order in (1, 2):
        samples = ratio_samples(sums, counts, order=order)
        if counts.sum() == 0:
            assert np.isnan(samples).all()
        else:
            assert samples.mean() == pytest.approx(sums.sum() / counts.sum(), abs=1e-9)


def test_ratio_samples_of_equal_counts_are_the_objects_own_means() -> None:
    sums = RNG.normal(size=12)
    np.testing.assert_allclose(ratio_samples(sums, np.full(12, 4.0)), sums / 4)


def test_pairs_of_objects_get_the_spread_that_fresh_objects_show() -> None:
    """The interval of a mean over pairs of objects, against its spread over newly drawn sets of objects."""

    def pair_mean(vectors: np.ndarray) -> tuple[float, np.ndarray]:
        gram = vectors @ vectors.T
        np.fill_diagonal(gram, 0)
        samples = ratio_samples(gram.sum(1), np.full(len(gram), len(gram) - 1.0), order=2)
        return samples.mean(), samples

    drawn = [np.random.default_rng(i).normal(0.5, 1.0, size=(60, 5)) for i in range(400)]
    spread = np.std([pair_mean(vectors)[0] for vectors in drawn])
    bounds = np.array([bootstrap_interval(pair_mean(vectors)[1], resamples=500) for vectors in drawn[:60]])
    widths = bounds[:, 1] - bounds[:, 0]
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(spread, rel=0.15)


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    before = RNG.normal(0, 1, size=300)
    after = before + 0.1 + RNG.normal(0, 0.05, size=300)
    a, b = figure(before), figure(after)
    assert a.high > b.low
    gap = paired_difference(b, a)
    assert gap.value == pytest.approx(b.value - a.value)
    assert 0.08 < gap.low < gap.value < gap.high < 0.12


def test_differences_pair_seed_by_seed() -> None:
    base = RNG.normal(size=(3, 80))
    before = [figure(row) for row in base]
    after = [figure(row + 0.5) for row in base]
    gap = paired_difference(after, before)
    assert (gap.low, gap.value, gap.high) == pytest.approx((0.5, 0.5, 0.5))
    one_side = paired_difference(after, before[0])
    assert one_side.value == pytest.approx(np.mean([f.value for f in after]) - before[0].value)


def test_unequal_objects_or_seeds_are_not_paired() -> None:
    a, b = figure(np.zeros(5), items=fingerprint(["x"])), figure(np.zeros(5), items=fingerprint(["y"]))
    with pytest.raises(DataError, match="different objects"):
        paired_difference(a, b)
    with pytest.raises(DataError, match="different objects"):
        paired_difference(figure(np.zeros(5)), figure(np.zeros(6)))
    with pytest.raises(DataError, match="2 seeds cannot be paired with 3"):
        paired_difference([a, a], [a, a, a])
    with pytest.raises(DataError, match="different names"):
        mean_over_seeds([figure(np.zeros(5)), figure(np.zeros(5), name="other")])


def test_mean_over_seeds_keeps_definition_and_n() -> None:
    figures = [figure(RNG.normal(size=30)) for _ in range(3)]
    mean = mean_over_seeds(figures)
    assert mean.value == pytest.approx(np.mean([f.value for f in figures]))
    assert mean.n == 30
    assert mean.definition == "A thing. Mean over 3 seeds."
    assert mean.low < mean.value < mean.high
    assert mean.samples is not None
    assert mean.samples.mean() == pytest.approx(mean.value)
    assert mean_over_seeds(figures[:1]) is figures[0]


def test_groups_reproduce_the_printed_averages() -> None:
    """Table 2 of Ruan et al. 2024, top-1 of the tuned OpenCLIP ViT-B/32."""
    names = ["IN-100", "IN-1K", "CIFAR-100", "V2", "Sketch", "IN-O", "IN-R", "OOD-CV", "IN-V", "IN-V+", "Pose", "MIRO"]
    printed = [80.9, 67.8, 65.0, 58.0, 45.8, 42.8, 50.3, 51.7, 61.9, 59.5, 52.8, 35.4]
    groups = {"clean": names[:3], "2d": names[3:8], "viewpoint": names[8:], "total": names}
    means = group_means(dict(zip(names, printed, strict=True)), groups)
    assert [means[group] for group in groups] == pytest.approx([71.2, 49.7, 52.4, 56.0], abs=0.1)
    with pytest.raises(ValueError, match="no value for MNIST"):
        group_means({"a": 1.0}, {"g": ["a", "MNIST"]})


def test_results_come_back_as_they_were_saved(tmp_path) -> None:
    nan = Figure("x/y", math.nan, 0, "Nothing.")
    kept = figure_over_objects("x/z", RNG.normal(size=9), "d", n=9, items="ab", headline="z", percent=True)
    result = EvalResult([nan, kept], [Table("t", ("a", "b"), [("1", "2")])], [tmp_path / "p.png"])
    save_result(result, tmp_path)
    back = load_result(tmp_path)
    assert back["x/z"] == kept
    assert kept.samples is not None
    np.testing.assert_array_equal(back["x/z"].samples, kept.samples)
    assert math.isnan(back["x/y"].value)
    assert back["x/y"].samples is None
    assert back.tables == result.tables
    assert back.pictures == result.pictures
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def test_damaged_results_give_one_clear_line(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_result(tmp_path)
    save_result(EvalResult([figure(np.arange(5.0))]), tmp_path)
    samples = next(tmp_path.glob("samples-*.npz"))
    good = samples.read_bytes()
    samples.write_bytes(good[:-7] + b"x" + good[-6:])
    with pytest.raises(DataError, match="another SHA-256"):
        load_result(tmp_path)
    samples.write_bytes(good)
    path = tmp_path / "result.json"
    text = path.read_text()
    for bad in (text[: len(text) // 2], text.replace(samples.name, f"../{samples.name}"), "[]", "{}"):
        path.write_text(bad)
        with pytest.raises(DataError, match=r"damaged"):
            load_result(tmp_path)
