"""What trainers ask of their run: passes over the data that leave no trace, and rows in the metrics."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from mvcore.errors import DataError
from mvcore.training.embedding import embed_dataset, evaluation_batches
from mvcore.training.fit import Training

if TYPE_CHECKING:
    from conftest import Lab

VIEW = frozenset({"view"})


@pytest.fixture
def training(lab: Lab, tmp_path: Path) -> Training:
    second = {"id": "data.views", "path": str(lab.store), "batch_size": 2, "limit_objects": 3}
    return lab.prepare(lab.values(data={"second": second}), tmp_path)


def traces(training: Training) -> dict[str, Any]:
    """All that a pass could change."""
    modules = dict(training.module.named_modules())
    return {
        "modes": {name: module.training for name, module in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in training.module.named_parameters()},
        "values": {name: p.detach().clone() for name, p in training.pipeline.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in training.module.named_parameters()},
        "torch": torch.random.get_rng_state(),
        "numpy": str(np.random.get_state()),
        "grad mode": torch.is_grad_enabled(),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_pass_leaves_no_trace(training: Training) -> None:
    """A8; also in the middle of a step, with gradients there and a mixture of modes."""
    assert training.module.make_loader is not None
    batches = next(iter(training.module.make_loader(0, 1, 0)))
    training.trainers[0].mine()
    training.module.objective.step(batches, lambda total: total.backward())
    next(iter(training.pipeline.adapters)).eval()
    before = traces(training)
    found = training.context.embed("objects", VIEW)
    training.trainers[0].mine()
    assert same(traces(training), before)
    assert not found.features["view"].requires_grad
    assert not training.trainers[0].state(batches["objects"])["ovt.anchors"].requires_grad


def test_a_pass_sees_each_view_once_with_ids_of_the_run(lab: Lab, training: Training) -> None:
    found = training.context.embed("objects", VIEW)
    assert found.features["view"].shape == (48, 16)
    assert found.object_ids.tolist() == list(range(8))
    assert found.view_ids.tolist() == list(range(48))
    assert found.object_of_view.tolist() == [n // 6 for n in range(48)]
    # The second source is on the same store, so its ids are the first's.
    assert training.context.embed("second", VIEW).view_ids.tolist() == list(range(18))
    again = training.context.embed("objects", VIEW)
    assert torch.equal(found.features["view"], again.features["view"])


def test_ids_of_another_store_come_after(lab: Lab, tmp_path: Path) -> None:
    from mvcore_data import ViewStoreWriter

    with ViewStoreWriter(tmp_path / "store") as store:
        store.add_object("one", np.zeros((2, 32, 32, 3), np.uint8), captions="a thing")
    second = {"id": "data.views", "path": str(tmp_path / "store"), "batch_size": 1}
    context = lab.prepare(lab.values(data={"second": second}), tmp_path / "run").context
    found = context.embed("second", VIEW)
    assert found.object_ids.tolist() == [8]
    assert found.view_ids.tolist() == [48, 49]
    assert (context.n_object_ids, context.n_view_ids) == (9, 50)


def test_a_pass_does_not_augment_and_does_not_depend_on_its_pieces(training: Training) -> None:
    whole = training.context.embed("objects", VIEW).features["view"]
    training.context._model.views_per_batch = 7
    torch.testing.assert_close(training.context.embed("objects", VIEW).features["view"], whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("views_per_batch", [1, 7, 13, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 11])
def test_the_ranks_parts_joined_are_the_whole(training: Training, views_per_batch: int, world_size: int) -> None:
    dataset = training.context.sources["objects"]
    parts: list[list[int]] = []
    for rank in range(world_size):
        batches = evaluation_batches(dataset, views_per_batch=views_per_batch, rank=rank, world_size=world_size)
        parts.append([i for group, _ in batches for i in group])
    every = list(range(8))
    assert [i for part in parts for i in part] == every or all(part == every for part in parts)


def test_an_empty_dataset_is_named() -> None:
    class Empty:
        def __len__(self) -> int:
            return 0

    with pytest.raises(DataError, match="no object to embed"):
        embed_dataset(lambda batch, keys: None, Empty(), VIEW)  # pyright: ignore[reportArgumentType]


def test_what_a_trainer_logs_is_in_the_next_row(lab: Lab, tmp_path: Path) -> None:
    training = lab.prepare(lab.values(run={"max_steps": 4, "log_every": 2}), tmp_path / "run")

    class Tells(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step == 2:
                training.context.log({"mine/count": 7.0})

    training.trainers.append(Tells())
    from mvcore.training.fit import fit
    from rich.console import Console

    fit(training, tmp_path / "run", title="test", console=Console(quiet=True))
    with (tmp_path / "run/metrics.csv").open(newline="") as stream:
        assert [(row["step"], row["mine/count"]) for row in csv.DictReader(stream)] == [("2", ""), ("4", "7")]
