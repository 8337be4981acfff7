"""A share of each step from the views that a trainer prefers: exact, full, the same over workers and resumes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from mvcore.errors import ConfigError
from mvcore.run_folder import checkpoint_of
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import PreferredViews, SourceSampler, SourceSpecification
from mvcore.types import ViewBatch


class Rows:
    """An indexed dataset of `n` objects of three views."""

    provides = frozenset({"object_ids", "view_ids"})
    image_size = 2

    def __init__(self, n: int) -> None:
        self._n = n
        self.store_key, self.n_store_objects, self.n_store_views = "rows", n, 3 * n

    def __len__(self) -> int:
        return self._n

    def views_of(self, i: int) -> range:
        return range(3 * i, 3 * i + 3)

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        return ViewBatch.make([len(views)], object_ids=torch.tensor([i]), view_ids=torch.tensor(views))

    def object_name(self, i: int) -> str:
        return f"row-{i}"

    def category(self, i: int) -> str | None:
        return None


def source(n: int = 20, share: float = 0.25, batch: int = 12, offset: int = 0) -> SourceSpecification:
    return SourceSpecification(
        name="a", dataset=Rows(n), sampling="views", batch_size=batch, outlier_share=share, view_offset=offset
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 15), st.floats(0.1, 0.9), st.integers(4, 20), st.sets(st.integers(0, 44)), st.integers(0, 2**30))
def test_a_step_is_full_and_holds_its_share_of_preferred_views(
    n: int, share: float, batch: int, preferred: set[int], seed: int
) -> None:
    size = min(batch, 3 * n)
    wanted = round(share * size)
    if not 0 < wanted < size:
        with pytest.raises(ConfigError, match=r"data\.a\.outlier_share: .* at least one view on either side"):
            SourceSampler(source(n, share, batch), seed)
        return
    sampler = SourceSampler(source(n, share, batch), seed)
    sampler.prefer(np.array(sorted(preferred), np.int64))
    there = {view for view in preferred if view < 3 * n}
    regular: list[int] = []
    for step in range(sampler.steps_per_epoch):
        views = sampler.draw(step).views.tolist()
        assert len(views) == len(set(views)) == size
        assert len(there & set(views)) >= min(wanted, len(there))
        regular += views
    # What is not the share is an epoch of all views.
    assert len(set(regular)) >= min(3 * n, (size - wanted) * sampler.steps_per_epoch)


def test_without_preferred_views_the_share_is_drawn_from_all() -> None:
    sampler = SourceSampler(source(n=20), seed=0)
    seen = np.bincount(np.concatenate([sampler.draw(step).views for step in range(3000)]), minlength=60) / 3000
    assert np.abs(seen - 12 / 60).max() < 0.03


def test_preferred_views_are_drawn_uniformly() -> None:
    sampler = SourceSampler(source(n=100), seed=0)
    sampler.prefer(np.arange(0, 300, 10))
    seen = np.bincount(np.concatenate([sampler.draw(step).views for step in range(4000)]), minlength=300) / 4000
    assert np.abs(seen[::10] - (3 / 30 + 9 / 300)).max() < 0.03
    assert np.abs(np.delete(seen, np.s_[::10]) - 9 / 300).max() < 0.015


def views_of(loader: Any) -> list[list[int]]:
    return [batch["a"].view_ids.tolist() for batch in loader]


def epochs(workers: int, publish_at: dict[int, list[int]], stop: int | None = None) -> tuple[list[list[int]], bytes]:
    """The steps of three passes of five, with views published before some steps; the loader's state at a step."""
    preferred = PreferredViews()
    loader = StepLoader([source(offset=7)], seed=3, workers=workers, steps=5, preferred=preferred)
    found: list[list[int]] = []
    state = io.BytesIO()
    for _ in range(3):
        for batch in loader:
            found.append(batch["a"].view_ids.tolist())
            if len(found) in publish_at:
                preferred.publish(torch.tensor(publish_at[len(found)]) + 7)
            if len(found) == stop:
                loader.position = len(found)
                torch.save(loader.state_dict(), state)
    return found, state.getvalue()


PUBLISHED = {3: [5, 10, 15, 20], 8: [0, 1, 2], 12: [30]}


def test_what_is_published_counts_from_the_next_pass_on() -> None:
    without, _ = epochs(0, {})
    found, _ = epochs(0, PUBLISHED)
    assert found[:5] == without[:5]
    for step in range(5, 10):
        assert len({12, 17, 22, 27} & set(found[step])) >= 3
    for step in range(10, 15):
        assert {7, 8, 9} <= set(found[step])


@pytest.mark.process
def test_workers_that_fetch_ahead_change_nothing() -> None:
    assert epochs(2, PUBLISHED)[0] == epochs(0, PUBLISHED)[0]


@pytest.mark.process
@pytest.mark.parametrize("stop", [4, 5, 6, 9, 10])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_draws_the_same(stop: int, workers: int) -> None:
    whole, state = epochs(0, {3: [5, 10, 15, 20]}, stop)
    resumed = StepLoader([source(offset=7)], seed=3, workers=workers, steps=5)
    resumed.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
    again = [views for _ in range(3 - stop // 5) for views in views_of(resumed)]
    assert again == whole[stop:]


# --- whole runs -------------------------------------------------------------------------------------------------


class Watch(Callback):
    """What each step drew and which of it was an outlier; stops the run after a step."""

    def __init__(self, stop: int | None = None) -> None:
        self.drawn: list[list[int]] = []
        self.outliers: list[int] = []
        self.stop = stop

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        mining = next(each for each in trainer.callbacks if type(each).__name__ == "OutlierMining")  # pyright: ignore
        self.drawn.append(batch["objects"].view_ids.tolist())
        self.outliers.append(int(mining.state(batch["objects"])["ovt.outliers"].sum()))

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.stop:
            trainer.should_stop = True


def with_share(lab: Any, **changes: Any) -> dict[str, Any]:
    return lab.values(data={"objects": {"outlier_share": 0.5}}, **changes)


@pytest.mark.parametrize(("stop", "workers"), [(2, 0), (4, 0), (6, 1)])
def test_a_run_mines_and_draws_its_share_and_a_resumed_one_does_the_same(
    lab: Any, tmp_path: Path, stop: int, workers: int
) -> None:
    whole = Watch()
    lab.fit(with_share(lab, run={"max_steps": 12}), tmp_path / "whole", callbacks=(whole,))
    assert len(whole.drawn) == 12
    # 12 views a step, 6 of them from the 2 outliers of each of 8 objects.
    assert min(whole.outliers) >= 6
    first, second = Watch(stop=stop), Watch()
    values = with_share(lab, run={"max_steps": 12, "workers": workers})
    lab.fit(values, tmp_path / "run", callbacks=(first,))
    lab.fit(values, tmp_path / "run", resume=checkpoint_of(tmp_path / "run"), callbacks=(second,))
    assert first.drawn == whole.drawn[:stop]
    assert second.drawn == whole.drawn[stop:]


def test_a_refresh_within_an_epoch_counts_from_the_next_one_on(lab: Any, tmp_path: Path) -> None:
    def drawn(workers: int) -> list[list[int]]:
        watch = Watch()
        values = with_share(
            lab, run={"max_steps": 20, "workers": workers}, trainers={"ovt.outlier_mining": {"refresh": 3}}
        )
        lab.fit(values, tmp_path / f"run-{workers}", callbacks=(watch,))
        return watch.drawn

    assert drawn(0) == drawn(1)


def test_a_share_needs_a_trainer_that_prefers_views(lab: Any) -> None:
    values = with_share(lab, losses={"ovt.vc": None}, trainers={"ovt.outlier_mining": None})
    del values["losses"]["ovt.vc"], values["trainers"]["ovt.outlier_mining"]
    with pytest.raises(ConfigError) as caught:
        lab.session(values)
    assert str(caught.value).endswith(
        "no trainer of this run names the views that this source shall prefer; ovt.outlier_mining does: name it under "
        "trainers"
    )


def test_a_trainer_that_only_prefers_views_is_kept(lab: Any) -> None:
    values = with_share(lab)
    del values["losses"]["ovt.vc"]
    assert [term.part.id for term in lab.session(values).plan.trainers] == ["ovt.outlier_mining"]
