"""What steps hold under a budget of views, with balance, with the same views of each object, and of pairs by angle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.errors import ConfigError, DataError
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import Draw, PairFilter, SourceSampler, SourceSpecification
from mvcore.training.sampling.pairs import pair_angles
from mvcore.types import ViewBatch


class Things:
    """A small indexed dataset: objects of some numbers of views, with categories, and cameras where given."""

    provides = frozenset({"object_ids", "view_ids"})
    image_size = 2
    store_key = "things"

    def __init__(self, counts: Sequence[int], words: Sequence[str | None] | None = None) -> None:
        starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self.n_store_objects, self.n_store_views = len(counts), starts[-1]
        self._views = [range(low, high) for low, high in pairwise(starts)]
        self._words = words or ["thing"] * len(counts)

    def __len__(self) -> int:
        return len(self._views)

    def views_of(self, i: int) -> range:
        return self._views[i]

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        return ViewBatch.make([len(views)], object_ids=torch.tensor([i]), view_ids=torch.tensor(views))

    def object_name(self, i: int) -> str:
        return f"thing-{i}"

    def category(self, i: int) -> str | None:
        return self._words[i]


class Seen(Things):
    """The same with world-to-camera matrices of each object's views."""

    def __init__(self, cameras: Sequence[np.ndarray]) -> None:
        super().__init__([len(each) for each in cameras])
        self._cameras = cameras

    def cameras_of(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(np.eye(3), (len(self._cameras[i]), 1, 1)), self._cameras[i]


class Shared(Seen):
    """The same with what its views share: one number for each two, from their ids; counts the questions."""

    asked = 0

    def covisibility(self, i: int, views: Sequence[int]) -> np.ndarray:
        self.asked += 1
        ids = np.asarray(views)
        return (ids[:, None] * 7 + ids[None] * 3) % 10 / 10


def sampler(dataset: Any, seed: int = 0, **changes: Any) -> SourceSampler:
    return SourceSampler(SourceSpecification(**{"name": "a", "dataset": dataset, **changes}), seed)


def sound(draw: Draw, dataset: Things) -> bool:
    """Different objects, and of each different views of its own."""
    assert len(set(draw.objects.tolist())) == len(draw.objects)
    for i, views in draw.requests():
        assert len(set(views)) == len(views) > 0
        assert set(views) <= set(dataset.views_of(i))
    return True


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=25)
seeds = st.integers(0, 2**40)
draws = st.sampled_from(["object", "batch", "indices"])


# --- budget -----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(sizes, seeds, draws, st.integers(1, 7), st.integers(0, 20), st.none() | st.integers(1, 5), st.integers(0, 2))
def test_a_budget_is_kept_and_every_object_comes_once_an_epoch(
    counts: list[int], seed: int, how: Any, high: int, slack: int, limit: int | None, epochs: int
) -> None:
    high = min(high, min(counts))
    dataset, budget = Things(counts), high + slack
    drawn = sampler(dataset, seed, views_per_object=(1, high), views_draw=how, views_per_batch=budget, batch_size=limit)
    step, steps = 0, []
    for _ in range(epochs + 1):
        seen: list[int] = []
        steps = []
        while len(seen) < len(counts):
            steps.append(drawn.draw(step))
            assert sound(steps[-1], dataset)
            assert len(steps[-1].views) <= budget
            assert len(steps[-1].objects) <= (limit or len(counts))
            assert how == "object" or len(set(steps[-1].counts.tolist())) == 1
            seen += steps[-1].objects.tolist()
            step += 1
        assert sorted(seen) == list(range(len(counts))), "steps end where the epoch ends"
    for this, following in pairwise(steps[:-1]):
        if len(this.objects) != limit:
            wanted = int(following.counts[0]) if how == "object" else int(this.counts[0])
            assert len(this.views) + wanted > budget, "one more object would have fitted"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(6, 9), min_size=12, max_size=60), seeds, draws, st.sampled_from([2, 3]))
def test_every_step_of_a_budget_can_be_split_over_ranks(counts: list[int], seed: int, how: Any, world: int) -> None:
    drawn = sampler(Things(counts), seed, views_per_object=(1, 6), views_draw=how, views_per_batch=12 * world)
    drawn.check_ranks(world)
    for step in range(2 * drawn.steps_per_epoch):
        draw = drawn.draw(step)
        parts = [draw.shard(rank, world) for rank in range(world)]
        assert all(len(part.objects) for part in parts)
        assert np.concatenate([part.views for part in parts]).tolist() == draw.views.tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([1, 6]), min_size=5, max_size=20), seeds)
def test_evening_the_last_two_steps_keeps_the_budget(counts: list[int], seed: int) -> None:
    drawn = sampler(Things(counts), seed, views_per_object=6, short_objects="take_all", views_per_batch=16)
    found = [drawn.draw(step) for step in range(drawn.steps_per_epoch)]
    assert sorted(np.concatenate([draw.objects for draw in found])) == list(range(len(counts)))
    assert max(len(draw.views) for draw in found) <= 16
    if len(found) > 1:
        before, last = found[-2:]
        movable = len(last.views) + before.counts[-1] <= 16
        assert len(last.objects) + 1 >= len(before.objects) or not movable


def test_a_budget_that_ranks_could_not_split_is_refused() -> None:
    drawn = sampler(Things([6] * 30), views_per_object=6, views_per_batch=18)
    drawn.check_ranks(1)
    with pytest.raises(ConfigError, match=r"data\.a: a batch of 1 objects .* 2 ranks; raise views_per_batch"):
        drawn.check_ranks(2)


def test_a_step_of_a_budget_needs_no_step_before_it() -> None:
    def make() -> SourceSampler:
        return sampler(Things([6] * 40), 3, views_per_object=(1, 6), views_per_batch=20)

    in_order, dataset = make(), Things([6] * 40)
    whole = [in_order.draw(step) for step in range(60)]
    for step in (59, 31, 0, 12):
        again = make().draw(step)
        assert sound(again, dataset)
        assert again.requests() == whole[step].requests()


def test_numbers_of_views_under_a_budget_are_uniform() -> None:
    drawn = sampler(Things([6] * 600), views_per_object=(1, 6), views_per_batch=60)
    counts = np.concatenate([drawn.draw(step).counts for step in range(drawn.steps_per_epoch * 4)])
    assert np.abs(np.bincount(counts, minlength=7)[1:] / len(counts) - 1 / 6).max() < 0.04


def test_a_budget_below_one_object_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.a\.views_per_batch is 5, but an object may have 6 views"):
        sampler(Things([6, 6]), views_per_object=(1, 6), views_per_batch=5)


# --- the same views of each object, and short objects -----------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(4, 9), min_size=3, max_size=12), seeds)
def test_indices_are_the_same_for_all_objects_of_a_step(counts: list[int], seed: int) -> None:
    dataset = Things(counts)
    drawn = sampler(dataset, seed, views_per_object=(1, 4), views_draw="indices", batch_size=3)
    for step in range(6):
        draw = drawn.draw(step)
        assert sound(draw, dataset)
        places = {tuple(view - dataset.views_of(i)[0] for view in views) for i, views in draw.requests()}
        assert len(places) == 1
        assert list(places.copy().pop()) == sorted(places.pop())


def test_shared_indices_and_their_number_are_uniform() -> None:
    drawn = sampler(Things([12] * 4), views_per_object=(1, 6), views_draw="indices", batch_size=4)
    found = [drawn.draw(step) for step in range(6000)]
    numbers = np.bincount([int(draw.counts[0]) for draw in found], minlength=7)[1:] / 6000
    assert np.abs(numbers - 1 / 6).max() < 0.02
    places = np.bincount(np.concatenate([draw.views % 12 for draw in found])) / (4 * 6000)
    assert np.abs(places - 3.5 / 12).max() < 0.02


@settings(max_examples=60, deadline=None)
@given(sizes, seeds, st.sampled_from(["object", "batch"]), st.none() | st.integers(9, 30))
def test_short_objects_give_all_they_have(counts: list[int], seed: int, how: Any, budget: int | None) -> None:
    dataset = Things(counts)
    rest: dict[str, Any] = {"batch_size": 4} if budget is None else {"views_per_batch": budget}
    drawn = sampler(dataset, seed, views_per_object=(5, 9), views_draw=how, short_objects="take_all", **rest)
    for step in range(5):
        draw = drawn.draw(step)
        assert sound(draw, dataset)
        assert all(len(views) >= min(5, counts[i]) for i, views in draw.requests())
        assert budget is None or len(draw.views) <= budget


# --- balance ----------------------------------------------------------------------------------------------------


def group_counts(found: Sequence[Draw], group_of: Sequence[int], views: bool, groups: int) -> list[np.ndarray]:
    """Members of each group in each step."""
    members = [draw.views if views else draw.objects for draw in found]
    return [np.bincount(np.asarray(group_of)[each], minlength=groups) for each in members]


@settings(max_examples=150, deadline=None)
@given(sizes, seeds, st.integers(1, 30), st.sampled_from(["views by object", "views by category", "objects"]))
def test_groups_come_equally_often_and_no_step_takes_a_member_twice(
    counts: list[int], seed: int, batch: int, what: str
) -> None:
    numbers = [i * i % 4 % 3 for i in range(len(counts))]
    dataset = Things(counts, [f"word-{n}" for n in numbers])
    views = what != "objects"
    group_of = numbers if what == "objects" else np.repeat(np.arange(len(counts)), counts).tolist()
    if what == "views by category":
        group_of = [numbers[i] for i in group_of]
    drawn = sampler(
        dataset,
        seed,
        sampling="views" if views else "objects",
        balance="object" if what == "views by object" else "category",
        batch_size=batch,
    )
    population = len(group_of)
    assert drawn.steps_per_epoch == max(1, population // batch)
    found = [drawn.draw(drawn.steps_per_epoch + step) for step in range(drawn.steps_per_epoch)]
    members = np.bincount(group_of)
    per_step = group_counts(found, group_of, views, len(members))
    for draw, here in zip(found, per_step, strict=True):
        assert sound(draw, dataset)
        assert here.sum() == min(batch, population)
        most = here.max()
        assert all(n >= most - 1 or n == size for n, size in zip(here, members, strict=True))
    over_epoch = np.sum(per_step, axis=0)
    level = max(n for n in range(max(members) + 1) if sum(min(n, size) for size in members) <= min(batch, population))
    base, steps = [min(level, size) for size in members], drawn.steps_per_epoch
    turns = steps * (min(batch, population) - sum(base))
    rest = [total - steps * b for total, b, size in zip(over_epoch, base, members, strict=True) if size > level]
    assert all(total == steps * size for total, size in zip(over_epoch, members, strict=True) if size <= level)
    assert sum(rest) == turns
    assert not rest or {turns // len(rest), -(-turns // len(rest))} >= set(rest)
    for group, size in enumerate(members):
        taken = Counter(
            member
            for draw in found
            for member in (draw.views if views else draw.objects).tolist()
            if group_of[member] == group
        )
        assert len(taken) == min(size, over_epoch[group]), "no member again before all others of its group"
        assert max(taken.values(), default=0) <= -(-int(over_epoch[group]) // int(size))


def test_each_object_is_equally_likely_whatever_its_views() -> None:
    counts = [1, 2, 5, 40, 100, 3, 9]
    drawn = sampler(Things(counts), sampling="views", balance="object", batch_size=5)
    owners = np.repeat(np.arange(7), counts)
    totals = np.zeros(7, np.int64)
    for step in range(drawn.steps_per_epoch * 20):
        here = np.bincount(owners[drawn.draw(step).views], minlength=7)
        assert here.max() == 1
        totals += here
    assert totals.sum() == 5 * drawn.steps_per_epoch * 20
    assert totals.max() - totals.min() <= 20, "to within one an epoch"


def test_balanced_pairs_are_of_each_category_equally_often() -> None:
    words = ["cup"] * 3 + ["chair"] * 17 + ["boat"] * 10
    drawn = sampler(Things([4] * 30, words), sampling="pairs", balance="category", batch_size=6)
    for step in range(12):
        assert Counter(words[i] for i in drawn.draw(step).objects) == {"cup": 2, "chair": 2, "boat": 2}


def test_an_object_without_category_is_named() -> None:
    with pytest.raises(DataError, match=r"balance: category needs one for every object, and 'thing-1' has none"):
        sampler(Things([2, 2], ["cup", None]), balance="category", batch_size=2)


# --- pairs by angle and co-visibility ---------------------------------------------------------------------------


def random_cameras(seed: int, views: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrices = np.tile(np.eye(4), (views, 1, 1))
    for matrix in matrices:
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        matrix[:3, :3] = turn * np.sign(np.linalg.det(turn))
    return matrices.astype(np.float32)


def naive_angle(first: np.ndarray, second: np.ndarray, of: str) -> float:
    a, b = first.astype(np.float64)[:3, :3], second.astype(np.float64)[:3, :3]
    cosine = a[2] @ b[2] if of == "direction" else (np.trace(a @ b.T) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


angles_of = st.sampled_from(["rotation", "direction"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**30), st.integers(1, 9), angles_of)
def test_angles_are_those_of_the_naive_oracle(seed: int, views: int, of: Any) -> None:
    cameras = random_cameras(seed, views)
    found = pair_angles(cameras, of)
    for i in range(views):
        for j in range(views):
            # The arc cosine of the oracle loses half of the digits at its ends.
            assert found[i, j] == pytest.approx(naive_angle(cameras[i], cameras[j], of), abs=0.05)


def test_roll_counts_for_rotation_and_not_for_direction() -> None:
    roll = np.tile(np.eye(4), (3, 1, 1))
    for turn, degrees in zip(roll[1:], (90, 180), strict=True):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn[:2, :2] = [[c, -s], [s, c]]
    assert pair_angles(roll, "rotation")[0] == pytest.approx([0, 90, 180], abs=1e-6)
    assert pair_angles(roll, "direction")[0] == pytest.approx([0, 0, 0], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(0, 2**30),
    st.tuples(st.floats(0, 180), st.floats(0, 180)),
    angles_of,
    st.none() | st.floats(0.05, 0.95),
)
def test_exactly_the_pairs_that_pass_the_filter_are_drawn(
    views: list[int], seed: int, limits: tuple[float, float], of: Any, share: float | None
) -> None:
    cameras = [random_cameras(seed + k, n) for k, n in enumerate(views)]
    dataset = Shared(cameras)
    low, high = sorted(limits)
    expected: dict[int, set[tuple[int, int]]] = {}
    near_limit = False
    for i, matrices in enumerate(cameras):
        for a, first in enumerate(dataset.views_of(i)):
            for b, second in enumerate(dataset.views_of(i)):
                angle = naive_angle(matrices[a], matrices[b], of)
                near_limit |= a != b and min(abs(angle - low), abs(angle - high)) < 0.05
                seen = share is None or (first * 7 + second * 3) % 10 / 10 >= share
                if a != b and low <= angle <= high and seen:
                    expected.setdefault(i, set()).add((first, second))
    if near_limit:
        return
    spec: dict[str, Any] = {
        "sampling": "pairs",
        "batch_size": 3,
        "pairs_like": PairFilter((low, high), of, share),
    }
    if not expected:
        with pytest.raises(DataError, match="no object has two views with pair_angle"):
            sampler(dataset, **spec)
        return
    drawn = sampler(dataset, seed, **spec)
    assert drawn.source.pairs is not None
    assert drawn.source.pairs.left_out == len(views) - len(expected)
    found: dict[int, set[tuple[int, int]]] = {}
    for step in range(40):
        for i, pair in drawn.draw(step).requests():
            found.setdefault(i, set()).add((pair[0], pair[1]))
    assert found.keys() == expected.keys()
    assert all(found[i] <= expected[i] for i in found)


def test_pairs_are_uniform_and_found_once_for_each_object() -> None:
    dataset = Shared([random_cameras(0, 5)])
    drawn = sampler(dataset, sampling="pairs", batch_size=1, pairs_like=PairFilter(covisibility=0.2))
    seen = Counter(tuple(drawn.draw(step).views.tolist()) for step in range(4000))
    assert len(seen) == sum((a * 7 + b * 3) % 10 >= 2 for a in range(5) for b in range(5) if a != b)
    assert max(seen.values()) - min(seen.values()) < 0.6 * 4000 / len(seen)
    assert dataset.asked <= 2


def test_views_without_a_camera_are_in_no_pair() -> None:
    cameras = random_cameras(1, 4)
    cameras[2] = np.nan
    drawn = sampler(Seen([cameras]), sampling="pairs", batch_size=1, pairs_like=PairFilter((0, 180)))
    assert {view for step in range(60) for view in drawn.draw(step).views.tolist()} == {0, 1, 3}


def test_a_dataset_without_cameras_or_depth_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.a: pair_angle: \[0, 90\] \(rotation\) needs cameras, which Things"):
        sampler(Things([4]), sampling="pairs", batch_size=1, pairs_like=PairFilter((0, 90)))
    with pytest.raises(ConfigError, match=r"data\.a: pair_covisibility needs depth, which Seen does not give"):
        sampler(Seen([random_cameras(0, 4)]), sampling="pairs", batch_size=1, pairs_like=PairFilter(covisibility=0.1))


# --- ranks, workers and resumes ---------------------------------------------------------------------------------

PLANS: dict[str, dict[str, Any]] = {
    "budget": {"views_per_object": (1, 4), "views_per_batch": 24},
    "shared budget": {"views_per_object": (1, 4), "views_draw": "batch", "views_per_batch": 24, "batch_size": 9},
    "indices": {"views_per_object": (1, 4), "views_draw": "indices", "batch_size": 6},
    "objects of a category": {"balance": "category", "batch_size": 6, "views_per_object": 2},
    "views of an object": {"sampling": "views", "balance": "object", "batch_size": 20},
    "pairs": {"sampling": "pairs", "batch_size": 5, "pairs_like": PairFilter((10, 170), covisibility=0.3)},
}


def plan_source(name: str) -> SourceSpecification:
    dataset = Shared([random_cameras(k, 4 + k % 5) for k in range(30)])
    dataset._words = [f"word-{k % 3}" for k in range(30)]
    return SourceSpecification(name="a", dataset=dataset, **PLANS[name])


def ids(loader: StepLoader) -> list[tuple[list[int], list[int]]]:
    return [(batch["a"].object_ids.tolist(), batch["a"].view_ids.tolist()) for batch in loader]


@pytest.mark.parametrize("name", PLANS)
def test_two_and_three_ranks_give_together_what_one_gives(name: str) -> None:
    whole = ids(StepLoader([plan_source(name)], seed=3, steps=8))
    for world in (2, 3):
        parts = [
            ids(StepLoader([plan_source(name)], seed=3, steps=8, rank=rank, world_size=world)) for rank in range(world)
        ]
        for step, expected in enumerate(whole):
            for k in (0, 1):
                assert [id for part in parts for id in part[step][k]] == expected[k]


@pytest.mark.process
@pytest.mark.parametrize("name", PLANS)
def test_workers_and_a_resume_draw_the_same(name: str) -> None:
    whole = ids(StepLoader([plan_source(name)], seed=3, steps=20))
    assert ids(StepLoader([plan_source(name)], seed=3, steps=20, workers=2)) == whole
    assert ids(StepLoader([plan_source(name)], seed=3, steps=20, workers=1, start=13)) == whole[13:]
