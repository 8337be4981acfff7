"""Acceptance A4, A7, A8, D4 and S2: when the trainer mines, what it publishes, and what it leaves alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.api import Features, PluginError, ViewBatch
from mvcore.encoders.open_clip import OpenClip
from mvcore.model import evaluating
from mvcore.parts import Embedded
from mvcore.training.embedding import embed_dataset
from mvcore_ovt import outlier_views, viewpoint_anchors
from mvcore_ovt.mining import OutlierMining
from torch.nn.functional import normalize


class Renders:
    """Random images of objects with ragged numbers of views."""

    provides = frozenset({"images", "object_ids", "view_ids"})
    image_size = 32
    store_key = "renders"

    def __init__(self, counts: Sequence[int], first_object: int = 0, first_view: int = 0) -> None:
        self.counts = list(counts)
        self.n_store_objects, self.n_store_views = len(counts), sum(counts)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._object, self._view = first_object, first_view
        rng = torch.Generator().manual_seed(8)
        self.images = torch.randint(0, 256, (sum(counts), 3, 32, 32), dtype=torch.uint8, generator=rng)

    def __len__(self) -> int:
        return len(self.counts)

    def views_of(self, i: int) -> range:
        return range(self._first[i], self._first[i + 1])

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        return ViewBatch.make(
            [len(views)],
            images=self.images[list(views)],
            object_ids=torch.tensor([self._object + i]),
            view_ids=torch.tensor(list(views)) + self._view,
        )

    def object_name(self, i: int) -> str:
        return f"object {i}"

    def category(self, i: int) -> str | None:
        return None


class Run:
    """A run's handle over one encoder and its sources."""

    seed = 0
    output = Path()
    device = torch.device("cpu")

    def __init__(self, encoder: OpenClip, sources: Mapping[str, Any], n_object_ids: int, n_view_ids: int) -> None:
        self.encoder, self.sources = encoder, sources
        self.n_object_ids, self.n_view_ids = n_object_ids, n_view_ids
        self.embedded: list[str] = []

    def prefer(self, view_ids: torch.Tensor) -> None:
        self.preferred = view_ids

    def sources_of(self, trainer: object) -> tuple[str, ...]:
        return tuple(self.sources)

    def embed(self, source: str, keys: frozenset[str]) -> Embedded:
        self.embedded.append(source)
        with evaluating(self.encoder):
            return embed_dataset(
                lambda batch, wanted: Features(self.encoder.encode(batch, wanted)), self.sources[source], keys
            )

    def log(self, values: Mapping[str, float]) -> None:
        raise AssertionError("nothing is logged")


COUNTS = [4, 1, 7, 2, 9]


@pytest.fixture
def run(small_clip: Callable[[], OpenClip]) -> Run:
    # The store's ids begin in the middle of the run's.
    return Run(small_clip(), {"renders": Renders(COUNTS, 2, 10)}, 2 + len(COUNTS) + 3, 10 + sum(COUNTS) + 5)


def bound(run: Run, **options: Any) -> OutlierMining:
    mining = OutlierMining(**options)
    mining.bind(run)
    return mining


def at(epoch: int = 0, step: int = 0) -> Any:
    return SimpleNamespace(current_epoch=epoch, global_step=step)


def start_epoch(mining: OutlierMining, epoch: int) -> None:
    mining.on_train_epoch_start(at(epoch=epoch), SimpleNamespace())  # pyright: ignore[reportArgumentType]


def start_step(mining: OutlierMining, step: int) -> None:
    mining.on_train_batch_start(at(step=step), SimpleNamespace(), None, 0)  # pyright: ignore[reportArgumentType]


def whole(run: Run, name: str = "renders") -> ViewBatch:
    from mvcore.api import concatenate

    source = run.sources[name]
    return concatenate([source.load(i, source.views_of(i), None) for i in range(len(source))])


def test_published_state_is_what_the_functions_give(run: Run) -> None:
    mining = bound(run, k=3, neighbours=4)
    start_epoch(mining, 0)
    batch = whole(run)
    state = mining.state(batch)
    views = normalize(run.embed("renders", frozenset({"view"})).features["view"], dim=-1)
    anchors = viewpoint_anchors(views, batch.object_of_view, neighbours=4)
    torch.testing.assert_close(state["ovt.anchors"], anchors)
    assert not state["ovt.anchors"].requires_grad
    expected = outlier_views(views, batch.object_of_view, state["ovt.anchors"], 3)
    several = batch.view_counts[batch.object_of_view] > 1
    assert torch.equal(state["ovt.outliers"], expected & several)


def test_a4_a_single_view_has_an_anchor_and_is_no_outlier(run: Run) -> None:
    mining = bound(run)
    start_epoch(mining, 0)
    batch = run.sources["renders"].load(1, run.sources["renders"].views_of(1), None)
    state = mining.state(batch)
    view = run.encoder.encode(batch, frozenset({"view"}))["view"]
    torch.testing.assert_close(state["ovt.anchors"], normalize(view, dim=-1), atol=1e-6, rtol=0)
    assert state["ovt.outliers"].tolist() == [False]


def test_a7_the_published_outliers_are_as_many_as_defined(run: Run) -> None:
    mining = bound(run, k=5)
    start_epoch(mining, 0)
    chosen = mining.state(whole(run))["ovt.outliers"]
    assert int(chosen.sum()) == sum(min(5, count) for count in COUNTS if count > 1)
    assert sorted(run.preferred.tolist()) == whole(run).view_ids[chosen].tolist(), "the sampler is told the same"


def test_a7_what_was_not_mined_gets_zero_and_false(run: Run) -> None:
    mining = bound(run)
    start_epoch(mining, 0)
    batch = ViewBatch.make([2, 1, 1], object_ids=torch.tensor([-1, 0, 9]), view_ids=torch.tensor([-1, 0, 9, -1]))
    state = mining.state(batch)
    assert state["ovt.anchors"].shape == (3, 24)
    assert not state["ovt.anchors"].any()
    assert not state["ovt.outliers"].any()


def test_sources_of_one_store_are_mined_together(small_clip: Callable[[], OpenClip]) -> None:
    whole_store = Renders(COUNTS)
    run = Run(small_clip(), {"all": whole_store}, len(COUNTS), sum(COUNTS))
    halves = {"even": _Subset(whole_store, 0), "odd": _Subset(whole_store, 1)}
    split = Run(small_clip(), halves, len(COUNTS), sum(COUNTS))
    first, second = bound(run), bound(split)
    for mining in (first, second):
        start_epoch(mining, 0)
    batch = whole(run, "all")
    for key, value in first.state(batch).items():
        torch.testing.assert_close(second.state(batch)[key], value)


class _Subset(Renders):
    """Every other view of a store, of the objects that have any."""

    def __init__(self, store: Renders, remainder: int) -> None:
        self.store, self.remainder = store, remainder
        self.objects = [i for i in range(len(store)) if list(store.views_of(i))[remainder::2]]

    def __len__(self) -> int:
        return len(self.objects)

    def views_of(self, i: int) -> Any:
        return list(self.store.views_of(self.objects[i]))[self.remainder :: 2]

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        return self.store.load(self.objects[i], views, rng)


def numpy_state() -> np.ndarray:
    """NumPy's global random state."""
    state: Any = np.random.get_state(legacy=False)
    return state["state"]["key"].copy()


def test_a8_mining_leaves_the_model_and_the_randomness_alone(run: Run) -> None:
    encoder = run.encoder
    encoder.set_trainable("last:1")
    encoder.train()
    encoder.encode(whole(run), frozenset({"view"}))["view"].sum().backward()
    modes = [module.training for module in encoder.modules()]
    before = [(p.clone(), p.requires_grad, None if p.grad is None else p.grad.clone()) for p in encoder.parameters()]
    random = torch.get_rng_state(), numpy_state()
    start_epoch(bound(run), 0)
    assert [module.training for module in encoder.modules()] == modes
    for parameter, (value, trains, grad) in zip(encoder.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == trains
        assert (parameter.grad is None and grad is None) or torch.equal(parameter.grad, grad)  # pyright: ignore[reportArgumentType]
    assert torch.equal(torch.get_rng_state(), random[0])
    assert (numpy_state() == random[1]).all()


def test_d4_once_an_epoch(run: Run) -> None:
    mining = bound(run, refresh="epoch")
    for epoch in range(3):
        start_epoch(mining, epoch)
        for step in range(4):
            start_step(mining, 4 * epoch + step)
            mining.state(whole(run))
    assert mining.times_mined == 3
    assert run.embedded == ["renders"] * 3


def test_d4_every_n_steps(run: Run) -> None:
    mining = bound(run, refresh=3)
    mined: list[int] = []
    for step in range(8):
        start_epoch(mining, step // 2)
        before = mining.times_mined
        start_step(mining, step)
        if mining.times_mined > before:
            mined.append(step)
    assert mined == [0, 3, 6]


def test_d4_mined_anchors_stay_fixed_until_the_next_refresh(run: Run) -> None:
    mining = bound(run)
    start_epoch(mining, 0)
    batch = whole(run)
    first = mining.state(batch)["ovt.anchors"].clone()
    with torch.no_grad():
        for parameter in run.encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert torch.equal(mining.state(batch)["ovt.anchors"], first)
    start_epoch(mining, 1)
    assert not torch.allclose(mining.state(batch)["ovt.anchors"], first, atol=1e-3)


@pytest.mark.parametrize("refresh", ["epoch", 5, "bank"])
def test_resuming_restores_and_does_not_mine_again(run: Run, refresh: Any) -> None:
    mining = bound(run, refresh=refresh)
    start_epoch(mining, 2)
    start_step(mining, 20)
    file = io.BytesIO()
    torch.save(mining.state_dict(), file)
    file.seek(0)

    again = bound(run, refresh=refresh)
    again.load_state_dict(torch.load(file, weights_only=True))
    before = len(run.embedded)
    # Lightning starts the interrupted epoch once more.
    start_epoch(again, 2)
    start_step(again, 22)
    assert len(run.embedded) == before
    batch = whole(run)
    for key, value in mining.state(batch).items():
        assert torch.equal(again.state(batch)[key], value)
    start_epoch(again, 3)
    start_step(again, 25)
    assert again.times_mined == mining.times_mined + 1


def test_bank_embeds_once_and_then_follows_the_steps(run: Run) -> None:
    mining = bound(run, refresh="bank", rule="mean")
    start_epoch(mining, 0)
    batch = whole(run)
    rng = torch.Generator().manual_seed(9)
    learnt = torch.randn(batch.n_views, 24, generator=rng)
    # Rows of another source have no place in the bank.
    foreign = ViewBatch.make([1], object_ids=torch.tensor([-1]), view_ids=torch.tensor([-1]))
    mining.observe(foreign, Features({"view": torch.full((1, 24), 99.0)}))
    mining.observe(batch, Features({"view": learnt}))
    start_epoch(mining, 1)
    assert run.embedded == ["renders"]
    assert mining.times_mined == 2
    expected = viewpoint_anchors(normalize(learnt, dim=-1), batch.object_of_view, rule="mean")
    torch.testing.assert_close(mining.state(batch)["ovt.anchors"], expected, atol=2e-3, rtol=0)


def test_state_before_the_first_epoch_mines_at_once(run: Run) -> None:
    mining = bound(run)
    mining.state(whole(run))
    start_epoch(mining, 0)
    assert mining.times_mined == 1


def test_a_trainer_without_a_run_says_so() -> None:
    with pytest.raises(PluginError, match="bind"):
        start_epoch(OutlierMining(), 0)
