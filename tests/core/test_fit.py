"""Whole short trainings: they learn, repeat and resume bit for bit, and keep what they must."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.config import OptimizerSettings
from mvcore.errors import ConfigError
from mvcore.run_folder import checkpoint_of
from mvcore.training.fit import Training
from mvcore.training.folder_checkpoint import FolderCheckpoint
from mvcore.training.optimization import learning_rate, make_optimizer
from mvcore_ovt.mining import OutlierMining
from torch import Tensor, nn

if TYPE_CHECKING:
    from conftest import Lab

STEPS = 10


class StopAt(Callback):
    """Ends a run after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


class Norms(Callback):
    """The norm of the gradient as the optimizer gets it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad for p in pl_module.trained().values() if p.grad is not None]
        self.seen.append(float(torch.stack([g.norm() for g in grads]).norm()))


def rows_of(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock decides."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if not k.endswith("per_s")} for row in csv.DictReader(stream)]


def equal_states(one: Any, other: Any, where: str = "") -> None:
    """Nested states are the same bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            equal_states(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            equal_states(*pair, f"{where}/{i}")
    else:
        assert one == other, where


# -- learning ----------------------------------------------------------------------------------------------------------


def test_the_loss_falls(lab: Lab, tmp_path: Path) -> None:
    values = lab.values(encoder={"train": "all"}, run={"max_steps": 60}, optimizer={"lr": 3e-3, "schedule": "constant"})
    lab.fit(values, tmp_path / "run")
    losses = [float(row["train/loss"]) for row in rows_of(tmp_path / "run")]
    assert sum(losses[-8:]) / 8 < sum(losses[:8]) / 8 - 0.3


def test_what_does_not_train_stays_bit_identical(lab: Lab, tmp_path: Path) -> None:
    training = lab.prepare(lab.values(run={"max_steps": 3}), tmp_path)
    before = {name: value.clone() for name, value in training.pipeline.state_dict().items()}
    trained = {id(p) for p in training.module.trained().values()}
    names = {name for name, p in training.pipeline.named_parameters(remove_duplicate=False) if id(p) in trained}
    texts = training.model.encode_text(["a cup 0", "the boat 2"])
    lab.train(training, tmp_path)
    after = training.pipeline.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == names
    assert torch.equal(texts, training.model.encode_text(["a cup 0", "the boat 2"]))
    kinds = {name.split("/")[1] for name in training.module.trained()}
    assert kinds == {"ovt.lora", "ovt.viformer", "ovt.logit_scale"}


# -- repeating and resuming --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_trace(lab: Lab, whole: tuple[Training, Path], tmp_path: Path) -> None:
    torch.rand(7)  # what the program drew before must not matter
    lab.fit(lab.values(), tmp_path / "again")
    assert rows_of(tmp_path / "again") == rows_of(whole[1])
    equal_states(
        load_weights(checkpoint_of(tmp_path / "again") / WEIGHTS), load_weights(checkpoint_of(whole[1]) / WEIGHTS)
    )


def test_another_seed_gives_another_trace(lab: Lab, whole: tuple[Training, Path], tmp_path: Path) -> None:
    lab.fit(lab.values(run={"seed": 1, "max_steps": 2}), tmp_path / "other")
    assert rows_of(tmp_path / "other")[0]["train/loss"] != rows_of(whole[1])[0]["train/loss"]


@pytest.mark.parametrize("stop", [3, 4, 5, 8], ids=["in an epoch", "at its end", "in the second", "at its end too"])
def test_a_resumed_run_is_the_uninterrupted_one(
    lab: Lab, whole: tuple[Training, Path], tmp_path: Path, stop: int
) -> None:
    folder = tmp_path / "run"
    lab.fit(lab.values(), folder, callbacks=(StopAt(stop),))
    assert checkpoint_of(folder).name == f"step-{stop:08d}"
    torch.rand(3)
    lab.fit(lab.values(), folder, resume=checkpoint_of(folder))
    same_run(folder, whole[1])


def same_run(folder: Path, reference: Path) -> None:
    """Metrics, weights, optimizer and trainers are the same."""
    assert rows_of(folder) == rows_of(reference)
    one, other = (FolderCheckpoint().load_checkpoint(checkpoint_of(path)) for path in (folder, reference))
    assert set(one["state_dict"]) == set(other["state_dict"])
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        equal_states(one[part], other[part], part)
    mined = next(key for key in one["callbacks"] if "OutlierMining" in key)
    equal_states(one["callbacks"][mined], other["callbacks"][mined], "mining")


def test_a_run_resumed_several_times_with_workers_is_the_same(
    lab: Lab, whole: tuple[Training, Path], tmp_path: Path
) -> None:
    values, folder = lab.values(run={"workers": 1}), tmp_path / "run"
    lab.fit(values, folder, callbacks=(StopAt(2),))
    lab.fit(values, folder, resume=checkpoint_of(folder), callbacks=(StopAt(6),))
    lab.fit(values, folder, resume=checkpoint_of(folder))
    same_run(folder, whole[1])


def test_rows_that_average_several_steps_survive_a_stop(lab: Lab, tmp_path: Path) -> None:
    values = lab.values(run={"log_every": 4})
    lab.fit(values, tmp_path / "whole")
    lab.fit(values, tmp_path / "stopped", callbacks=(StopAt(6),))
    lab.fit(values, tmp_path / "stopped", resume=checkpoint_of(tmp_path / "stopped"))
    rows = rows_of(tmp_path / "stopped")
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    assert rows == rows_of(tmp_path / "whole")


def test_a_crash_goes_on_from_the_last_checkpoint(lab: Lab, whole: tuple[Training, Path], tmp_path: Path) -> None:
    class Crash(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step == 8:
                raise MemoryError

    values, folder = lab.values(run={"checkpoint_every": 3}), tmp_path / "run"
    with pytest.raises(MemoryError):
        lab.fit(values, folder, callbacks=(Crash(),))
    assert checkpoint_of(folder).name == "step-00000006"
    lab.fit(values, folder, resume=checkpoint_of(folder))
    same_run(folder, whole[1])


def test_resuming_at_the_last_step_changes_nothing(lab: Lab, whole: tuple[Training, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(whole[1], tmp_path / "run"))
    lab.fit(lab.values(), folder, resume=checkpoint_of(folder))
    same_run(folder, whole[1])


def test_mining_happens_exactly_once_an_epoch(lab: Lab, whole: tuple[Training, Path], tmp_path: Path) -> None:
    assert whole[0].trainers[0].times_mined == 3  # epochs of 4 steps: 10 steps begin three
    folder = tmp_path / "run"
    lab.fit(lab.values(), folder, callbacks=(StopAt(6),))
    resumed = lab.fit(lab.values(), folder, resume=checkpoint_of(folder))
    assert resumed.trainers[0].times_mined == 3


def test_each_step_draws_from_every_source(lab: Lab, tmp_path: Path) -> None:
    """D2: a shorter source starts again without ending the epoch."""

    class Watch(Callback):
        def __init__(self) -> None:
            self.sizes: list[tuple[int, int]] = []
            self.epochs: list[int] = []
            self.outliers = 0
            self.views = 0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any, **__: Any) -> None:
            self.sizes.append((batch["objects"].n_views, batch["few"].n_views))
            self.epochs.append(trainer.current_epoch)
            mining = next(callback for callback in trainer.callbacks if isinstance(callback, OutlierMining))
            mined = mining.state(batch["objects"])["ovt.outliers"]
            self.outliers += int(mined.sum())
            self.views += batch["objects"].n_views

    few = {"id": "data.views", "path": str(lab.store), "sampling": "views", "batch_size": 4, "limit_objects": 1}
    watch = Watch()
    lab.fit(
        lab.values(data={"few": few}, losses={"ovt.vc": {"on": ["objects"]}}, run={"max_steps": 8}),
        tmp_path / "run",
        callbacks=(watch,),
    )
    assert watch.sizes == [(12, 4)] * 8
    assert watch.epochs == [0] * 4 + [1] * 4
    # Two whole epochs see every view twice, and two of each object's six views are outliers.
    assert (watch.outliers, watch.views) == (2 * 8 * 2, 2 * 8 * 6)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_gradient_norm_is_clipped(lab: Lab, tmp_path: Path) -> None:
    norms = Norms()
    lab.fit(lab.values(optimizer={"clip_norm": 0.01}, run={"max_steps": 4}), tmp_path / "run", callbacks=(norms,))
    assert norms.seen == pytest.approx([0.01] * 4, rel=1e-3)
    free = Norms()
    lab.fit(lab.values(optimizer={"clip_norm": None}, run={"max_steps": 4}), tmp_path / "free", callbacks=(free,))
    assert min(free.seen) > 0.05


def test_a_row_has_the_rate_of_its_step(lab: Lab, tmp_path: Path) -> None:
    values = lab.values(optimizer={"lr": 1e-3, "schedule": "linear", "warmup_steps": 2}, run={"max_steps": 6})
    lab.fit(values, tmp_path / "run")
    rates = [float(row["train/lr"]) for row in rows_of(tmp_path / "run")]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_the_released_schedule() -> None:
    """D6: the released preset's rate at epochs 0 to 4, constant within an epoch."""
    settings = OptimizerSettings(lr=5e-5, schedule="cosine-epochs", schedule_epochs=30, min_lr=1e-7)
    factor = learning_rate(settings, max_steps=35_000, epoch_steps=100)
    rates = [5e-5 * factor(100 * epoch) for epoch in range(5)]
    assert rates == pytest.approx([5e-5, 4.986e-5, 4.945e-5, 4.878e-5, 4.784e-5], abs=5e-9)
    assert all(factor(100 * epoch + 99) == factor(100 * epoch) for epoch in range(5))


def test_the_released_schedule_is_torchs() -> None:
    settings = OptimizerSettings(lr=5e-5, schedule="cosine-epochs", schedule_epochs=30, min_lr=1e-7)
    factor = learning_rate(settings, max_steps=35_000, epoch_steps=1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-7)
    for epoch in range(31):
        assert 5e-5 * factor(epoch) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_end_at_the_lowest_rate(schedule: Any) -> None:
    settings = OptimizerSettings(lr=1e-3, schedule=schedule, warmup_steps=5, min_lr=1e-5)
    factor = learning_rate(settings, max_steps=20, epoch_steps=7)
    rates = [1e-3 * factor(step) for step in range(21)]
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[20] == pytest.approx(1e-5)
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))


def test_groups_have_settings_of_their_own(whole: tuple[Training, Path]) -> None:
    trained = whole[0].module.trained()
    settings = OptimizerSettings.model_validate(
        {
            "lr": 1e-3,
            "weight_decay": 0.1,
            "groups": [{"match": "lora_b", "lr": 1e-2}, {"match": "viformer", "lr": 1e-4}],
        }
    )
    rates: dict[int, tuple[float, float]] = {}
    for group in make_optimizer(settings, trained).param_groups:
        rates |= {id(p): (group["lr"], group["weight_decay"]) for p in group["params"]}
    assert len(rates) == len(trained)
    for name, parameter in trained.items():
        lr, decay = rates[id(parameter)]
        assert lr == (1e-2 if "lora_b" in name else 1e-4 if "viformer" in name else 1e-3)
        assert decay == (0.1 if parameter.ndim >= 2 else 0.0)
    with pytest.raises(ConfigError, match="contains 'nothing'"):
        make_optimizer(OptimizerSettings.model_validate({"groups": [{"match": "nothing"}]}), trained)


# -- measuring while training ------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept(lab: Lab, tmp_path: Path) -> None:
    figures = {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.6, 10: 0.8}
    values = lab.values(run={"checkpoint_every": 2}, validate={"every": 2, "best": "score", "on": [], "data": {}})
    training = lab.prepare(values, tmp_path / "run")
    vectors: dict[int, Tensor] = {}

    def measure(model: Any, output: Path) -> dict[str, float]:
        step = int(output.name.removeprefix("step-"))
        vectors[step] = next(iter(training.module.trained().values())).detach().clone()
        return {"score": figures[step]}

    lab.train(training, tmp_path / "run", measure=measure)
    pointer = json.loads((tmp_path / "run/checkpoints/last.json").read_text())
    assert pointer == {"last": "step-00000010", "best": "step-00000004", "best_value": 0.9}
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert kept == ["step-00000004", "step-00000008", "step-00000010"]
    best = load_weights(checkpoint_of(tmp_path / "run", "best") / WEIGHTS)
    assert torch.equal(best[next(iter(training.module.trained()))], vectors[4])
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 11)]
    assert [row["score"] for row in rows] == ["", "0.5", "", "0.9", "", "0.7", "", "0.6", "", "0.8"]


def test_measuring_changes_nothing_in_a_run(lab: Lab, whole: tuple[Training, Path], tmp_path: Path) -> None:
    measured = {"id": "data.views", "path": str(lab.store)}
    values = lab.values(validate={"every": 3, "on": ["core.zero_shot", "core.consistency"], "data": {"ood": measured}})
    session = lab.session(values)
    from mvcore.running import Session
    from mvcore.training.fit import prepare

    assert isinstance(session, Session)
    training = prepare(session.plan, session.sources, tmp_path / "run")

    def measure(model: Any, output: Path) -> dict[str, float]:
        from mvcore.evaluation.runner import evaluate

        found = evaluate(model, session.evaluators, session.measured, output)
        return {figure.name: figure.value for result in found.values() for figure in result.figures}

    lab.train(training, tmp_path / "run", measure=measure)
    equal_states(
        load_weights(checkpoint_of(tmp_path / "run") / WEIGHTS), load_weights(checkpoint_of(whole[1]) / WEIGHTS)
    )
    assert "core.zero_shot/top1/ood" in rows_of(tmp_path / "run")[2]


def test_an_unknown_best_figure_is_named(lab: Lab, tmp_path: Path) -> None:
    values = lab.values(validate={"every": 1, "best": "score", "on": [], "data": {}})
    training = lab.prepare(values, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no figure 'score'; there are: top1"):
        lab.train(training, tmp_path / "run", measure=lambda model, output: {"top1": 0.5})
