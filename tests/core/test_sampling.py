"""The sampling loader: what each step draws, whatever the workers, ranks and resumes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.errors import ConfigError, DataError
from mvcore.packing import concatenate
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSampler, SourceSpecification, assign_offsets, steps_per_epoch
from mvcore.types import ViewBatch


class NoisyViews:
    """A real, small indexed dataset: pixel = view id plus noise from the transforms' generator."""

    provides = frozenset({"images", "object_ids", "view_ids", "captions"})
    image_size = 2

    def __init__(self, counts: Sequence[int], key: str = "store", skip: int = 0, fail_at: int | None = None) -> None:
        self.store_key = key
        self.fail_at = fail_at
        starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self.n_store_objects, self.n_store_views = len(counts) + skip, starts[-1] + skip
        self._views = [range(skip + low, skip + high) for low, high in pairwise(starts)]
        self._skip = skip

    def __len__(self) -> int:
        return len(self._views)

    def views_of(self, i: int) -> range:
        return self._views[i]

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        if i == self.fail_at:
            raise DataError(f"object {i} is damaged")
        assert all(view in self._views[i] for view in views)
        images = torch.tensor(views, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).clone()
        if rng is not None:
            images += torch.from_numpy(rng.integers(0, 50, images.shape).astype(np.uint8))
        return ViewBatch.make(
            [len(views)],
            images=images,
            object_ids=torch.tensor([i + self._skip]),
            view_ids=torch.tensor(views),
            captions=[self.object_name(i)],
            caption_object=torch.tensor([0]),
            caption_view=torch.tensor([-1]),
        )

    def object_name(self, i: int) -> str:
        return f"thing-{i}"

    def category(self, i: int) -> str | None:
        return None


class ManyNoisyViews(NoisyViews):
    """The same with the fast path."""

    def load_many(self, requests: Any, rng_of: Any) -> ViewBatch:
        return concatenate([self.load(i, views, rng_of(k)) for k, (i, views) in enumerate(requests)])


def source(dataset: Any, **changes: Any) -> SourceSpecification:
    return SourceSpecification(**{"name": "a", "dataset": dataset, "batch_size": 4, **changes})


def two_sources(dataset_type: type[NoisyViews] = NoisyViews) -> list[SourceSpecification]:
    return [
        source(dataset_type([5, 3, 4, 6, 2, 7, 3]), sampling="objects", batch_size=3, views_per_object=(1, 2)),
        source(dataset_type([4] * 5, "other"), name="b", sampling="views", batch_size=7, object_offset=7, index=1),
    ]


def assert_equal_batches(first: dict[str, ViewBatch], second: dict[str, ViewBatch]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        for field in ("images", "view_counts", "object_ids", "view_ids", "source", "caption_object"):
            assert torch.equal(getattr(first[name], field), getattr(second[name], field)), (name, field)
        assert first[name].captions == second[name].captions


counts_of_objects = st.lists(st.integers(2, 6), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(counts_of_objects, st.integers(1, 9), st.integers(0, 2**40), st.integers(0, 3))
def test_views_of_an_epoch_are_drawn_once_each(counts: list[int], batch: int, seed: int, epoch: int) -> None:
    sampler = SourceSampler(source(NoisyViews(counts), sampling="views", batch_size=batch), seed)
    steps = sampler.steps_per_epoch
    drawn = [sampler.draw(epoch * steps + s) for s in range(steps)]
    assert all(len(draw.views) == min(batch, sum(counts)) == draw.counts.sum() for draw in drawn)
    assert all(len(set(draw.objects)) == len(draw.objects) for draw in drawn), "an object's views stand together"
    views = np.concatenate([draw.views for draw in drawn])
    assert len(set(views)) == len(views) > sum(counts) - batch, "only a partial last batch may be missing"
    owners = np.repeat(np.arange(len(counts)), counts)
    for draw in drawn:
        assert np.array_equal(owners[draw.views], np.repeat(draw.objects, draw.counts))


@settings(max_examples=60, deadline=None)
@given(counts_of_objects, st.integers(1, 9), st.integers(0, 2**40), st.sampled_from(["object", "batch"]))
def test_objects_of_an_epoch_are_drawn_once_each(counts: list[int], batch: int, seed: int, draws: Any) -> None:
    views_per_object = (1, min(counts))
    spec = source(
        NoisyViews(counts), sampling="objects", batch_size=batch, views_per_object=views_per_object, views_draw=draws
    )
    sampler = SourceSampler(spec, seed)
    drawn = [sampler.draw(s) for s in range(sampler.steps_per_epoch)]
    objects = np.concatenate([draw.objects for draw in drawn])
    assert len(set(objects)) == len(objects) > len(counts) - batch
    for draw in drawn:
        assert draw.counts.min() >= 1
        assert draw.counts.max() <= min(counts)
        assert draws == "object" or len(set(draw.counts)) == 1
        for i, views in draw.requests():
            assert len(set(views)) == len(views)
            assert set(views) <= set(spec.dataset.views_of(i))


def test_views_of_an_object_are_drawn_uniformly() -> None:
    sampler = SourceSampler(source(NoisyViews([4, 4]), batch_size=2, views_per_object=2), seed=5)
    seen = np.bincount(np.concatenate([sampler.draw(s).views for s in range(3000)]), minlength=8) / 3000
    assert np.abs(seen - 0.5).max() < 0.05


def test_a_range_is_drawn_uniformly_and_per_object() -> None:
    sampler = SourceSampler(source(NoisyViews([4] * 6), batch_size=6, views_per_object=(1, 3)), seed=5)
    drawn = np.stack([sampler.draw(s).counts for s in range(1000)])
    assert np.abs(np.bincount(drawn.ravel(), minlength=4)[1:] / drawn.size - 1 / 3).max() < 0.03
    assert (drawn.min(axis=1) < drawn.max(axis=1)).mean() > 0.9


def test_pairs_are_two_different_views_of_each_object() -> None:
    sampler = SourceSampler(source(NoisyViews([2, 5, 3, 9]), sampling="pairs"), seed=0)
    for step in range(50):
        draw = sampler.draw(step)
        assert draw.counts.tolist() == [2] * 4
        assert all(len(set(views)) == 2 for _, views in draw.requests())


def test_epochs_seeds_and_source_names_give_other_orders() -> None:
    def order(seed: int, name: str, epoch: int) -> list[int]:
        sampler = SourceSampler(source(NoisyViews([3] * 20), name=name, sampling="views", batch_size=60), seed)
        return sampler.draw(epoch).views.tolist()

    orders = [order(0, "a", 0), order(0, "a", 1), order(1, "a", 0), order(0, "b", 0)]
    assert all(sorted(each) == list(range(60)) for each in orders)
    assert len({tuple(each) for each in orders}) == 4


def test_a_source_smaller_than_a_batch_gives_all_it_has() -> None:
    spec = source(NoisyViews([2, 3]), sampling="views", batch_size=512)
    assert steps_per_epoch(spec) == 1
    assert sorted(SourceSampler(spec, 0).draw(17).views.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.process
@pytest.mark.parametrize("dataset_type", [NoisyViews, ManyNoisyViews])
def test_workers_and_a_resume_change_nothing(dataset_type: type[NoisyViews]) -> None:
    def batches(workers: int, start: int) -> list[dict[str, ViewBatch]]:
        return list(StepLoader(two_sources(dataset_type), seed=3, workers=workers, start=start, steps=7))

    whole = batches(workers=0, start=0)
    assert len(whole) == 7
    for workers, start in ((1, 0), (2, 0), (0, 4), (2, 4)):
        again = batches(workers, start)
        assert len(again) == 7 - start
        for first, second in zip(whole[start:], again, strict=True):
            assert_equal_batches(first, second)


def test_the_fast_path_gives_what_load_gives() -> None:
    slow = StepLoader(two_sources(NoisyViews), seed=3, steps=3)
    fast = StepLoader(two_sources(ManyNoisyViews), seed=3, steps=3)
    for first, second in zip(slow, fast, strict=True):
        assert_equal_batches(first, second)


def test_iterating_again_goes_on_where_the_last_pass_ended() -> None:
    loader = StepLoader(two_sources(), seed=3, steps=4)
    assert len(loader) == 4
    passes = [*loader, *loader]
    assert len(passes) == 8
    for first, second in zip(passes, StepLoader(two_sources(), seed=3, steps=8), strict=True):
        assert_equal_batches(first, second)


def test_state_is_the_trainers_position_and_not_what_was_fetched() -> None:
    loader = StepLoader(two_sources(), seed=3, steps=6)
    given_batches = iter(loader)
    expected = [next(given_batches) for _ in range(5)][2:]
    loader.position = 2
    resumed = StepLoader(two_sources(), seed=3, steps=6)
    resumed.load_state_dict(loader.state_dict())
    assert len(resumed) == 6
    for first, second in zip(expected, resumed, strict=False):
        assert_equal_batches(first, second)


def test_loading_draws_nothing_from_the_global_generators() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    list(StepLoader(two_sources(), seed=3, steps=2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])


@settings(max_examples=40, deadline=None)
@given(counts_of_objects, st.integers(1, 4), st.sampled_from(["objects", "views", "pairs"]), st.integers(0, 99))
def test_ranks_partition_the_global_batch(counts: list[int], world: int, sampling: Any, step: int) -> None:
    sampler = SourceSampler(source(NoisyViews(counts), sampling=sampling, batch_size=8, views_per_object=2), 1)
    draw = sampler.draw(step)
    if len(draw.objects) < world:
        with pytest.raises(DataError, match="ranks"):
            draw.shard(0, world)
        return
    parts = [draw.shard(rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate([part.objects for part in parts]), draw.objects)
    assert np.array_equal(np.concatenate([part.views for part in parts]), draw.views)
    assert np.array_equal(np.concatenate([part.counts for part in parts]), draw.counts)
    assert [part.first for part in parts] == np.cumsum([0, *(len(part.objects) for part in parts)])[:-1].tolist()
    assert all(len(part.objects) for part in parts)


def test_ranks_hold_nearly_equal_numbers_of_views() -> None:
    sampler = SourceSampler(source(NoisyViews([24] * 40), batch_size=40, views_per_object=(1, 24)), 1)
    for step in range(20):
        sizes = [len(sampler.draw(step).shard(rank, 4).views) for rank in range(4)]
        assert max(sizes) - min(sizes) <= 2 * 24


def test_ranks_give_the_pixels_of_the_single_process() -> None:
    whole = list(StepLoader(two_sources(), seed=3, steps=3))
    parts = [list(StepLoader(two_sources(), seed=3, steps=3, rank=rank, world_size=2)) for rank in range(2)]
    for step, expected in enumerate(whole):
        together = {name: concatenate([part[step][name] for part in parts]) for name in expected}
        assert_equal_batches(expected, together)


def test_datasets_on_one_store_share_their_ids() -> None:
    a, b, c = NoisyViews([2, 3], "x"), NoisyViews([4], "y"), NoisyViews([2, 3], "x")
    offsets, n_objects, n_views = assign_offsets([a, b, c])
    assert offsets == [(0, 0), (2, 5), (0, 0)]
    assert (n_objects, n_views) == (3, 9)
    with pytest.raises(DataError, match="'x' changed"):
        assign_offsets([a, NoisyViews([2, 4], "x")])


def test_batches_carry_the_runs_ids_and_their_source() -> None:
    dataset = NoisyViews([2, 3], "y", skip=1)
    spec = source(dataset, name="b", sampling="views", batch_size=5, object_offset=10, view_offset=100, index=3)
    batch = next(iter(StepLoader([spec], seed=0, steps=1)))["b"]
    assert sorted(batch.object_ids.tolist()) == [11, 12]
    assert sorted(batch.view_ids.tolist()) == [101, 102, 103, 104, 105]
    assert batch.source.tolist() == [3, 3]


def test_ids_that_are_not_known_stay_unknown() -> None:
    class Nameless(NoisyViews):
        provides = frozenset()

        def load(self, i: int, views: Sequence[int], rng: Any) -> ViewBatch:
            return ViewBatch.make([len(views)])

    batch = next(iter(StepLoader([source(Nameless([2, 2]), object_offset=9, view_offset=9)], seed=0, steps=1)))["a"]
    assert set(batch.object_ids.tolist()) == set(batch.view_ids.tolist()) == {-1}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"views_per_object": 4}, r"data\.a: views_per_object: 4 .* object 'thing-1' has 3 \(1 of 3"),
        ({"views_per_object": (2, 6)}, r"needs 6 views of every object, but object 'thing-1' has 3 \(2 of 3"),
        ({"views_per_object": 0}, "views_per_object must be"),
        ({"views_per_object": (3, 2)}, "views_per_object must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        StepLoader([source(NoisyViews([5, 3, 6]), **changes)], seed=0, steps=1)


def test_pairs_of_single_views_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sampling: pairs needs 2 views .* 'thing-1' has 1"):
        StepLoader([source(NoisyViews([5, 1]), sampling="pairs")], seed=0, steps=1)


def test_too_few_objects_for_the_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 objects cannot be split over 3 ranks"):
        StepLoader([source(NoisyViews([5, 5]))], seed=0, steps=1, world_size=3)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(DataError, match="no views"):
        StepLoader([source(NoisyViews([]))], seed=0, steps=1)


def test_what_is_neither_indexed_nor_a_stream_is_refused() -> None:
    class Half:
        provides = frozenset({"images"})
        image_size = 8

        def __len__(self) -> int:
            return 1

    with pytest.raises(ConfigError, match=r"data\.a: Half is a stream or lacks .*pack the data into a store"):
        StepLoader([source(Half())], seed=0, steps=1)
    with pytest.raises(ConfigError, match="Half is a stream or lacks"):
        assign_offsets([Half()])  # type: ignore[list-item]


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_data_arrives_as_its_one_line(workers: int) -> None:
    loader = StepLoader([source(NoisyViews([2, 2, 2, 2], fail_at=1))], seed=0, steps=2, workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value) == "object 1 is damaged"
