"""Checkpoints: what they hold, what is refused, and that a run that fails leaves the last good one."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from mvcore.checkpoint import STATE, WEIGHTS, load_weights
from mvcore.errors import DataError, NonFiniteLossError, WeightsError
from mvcore.run_folder import checkpoint_of
from mvcore.training.fit import Training
from mvcore.training.folder_checkpoint import FolderCheckpoint

if TYPE_CHECKING:
    from conftest import Lab


class Poison(Callback):
    """Makes a trained weight NaN before a step (0-based), or its gradient after the step's losses."""

    def __init__(self, step: int, what: str) -> None:
        self.step = step
        self.what = what

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            parameter = next(iter(pl_module.trained().values()))
            if self.what == "weight":
                with torch.no_grad():
                    parameter.fill_(float("nan"))
            else:
                parameter.register_hook(lambda gradient: gradient * float("nan"))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_only_what_trains(whole: tuple[Training, Path]) -> None:
    folder = checkpoint_of(whole[1])
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, STATE])
    weights = load_weights(folder / WEIGHTS)
    assert {key.rpartition("/")[0] for key in weights} == {
        "adapters/ovt.lora",
        "adapters/ovt.viformer",
        "adapters/ovt.logit_scale",
    }
    assert {id(p) for p in whole[0].module.trained().values()} <= {id(p) for p in whole[0].module.parameters()}
    assert set(weights) == set(whole[0].module.trained())
    torch.load(folder / STATE, weights_only=True)


@pytest.mark.parametrize("name", [WEIGHTS, STATE])
@pytest.mark.parametrize("damage", ["gone", "cut", "rubbish"])
def test_a_damaged_checkpoint_is_one_line(whole: tuple[Training, Path], tmp_path: Path, name: str, damage: str) -> None:
    import shutil

    folder = tmp_path / "step-00000010"
    shutil.copytree(checkpoint_of(whole[1]), folder)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\x80\x04rubbish" * 50)
    with pytest.raises(WeightsError) as caught:
        FolderCheckpoint().load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_place_of_the_state_is_not_run(tmp_path: Path, whole: tuple[Training, Path]) -> None:
    import pickle
    import shutil

    class Harm:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "harm").write_text, ("done",))

    folder = tmp_path / "step-00000010"
    shutil.copytree(checkpoint_of(whole[1]), folder)
    (folder / STATE).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(WeightsError, match="damaged or not a checkpoint"):
        FolderCheckpoint().load_checkpoint(folder)
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_of_another_run_is_refused_by_name(lab: Lab, whole: tuple[Training, Path], tmp_path: Path) -> None:
    values = lab.values(adapters={"ovt.lora": {"rank": 3}})
    with pytest.raises(WeightsError, match=r"do not fit .*lora_a is \(2, 32\), not \(3, 32\)"):
        lab.fit(values, tmp_path / "run", resume=checkpoint_of(whole[1]))


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_nan_loss_names_term_and_step_and_keeps_the_last_good_checkpoint(
    lab: Lab, tmp_path: Path, log_every: int
) -> None:
    values = lab.values(run={"checkpoint_every": 2, "log_every": log_every})
    with pytest.raises(NonFiniteLossError, match=r"core\.itc .*NaN or infinite at step 5"):
        lab.fit(values, tmp_path / "run", callbacks=(Poison(5, "weight"),))
    good = load_weights(checkpoint_of(tmp_path / "run") / WEIGHTS)
    assert checkpoint_of(tmp_path / "run").name == "step-00000004"
    assert all(value.isfinite().all() for value in good.values())
    resumed = lab.fit(values, tmp_path / "run", resume=checkpoint_of(tmp_path / "run"))
    assert resumed.module.outcome is not None
    assert resumed.module.outcome.total.isfinite()


def test_a_nan_gradient_is_not_saved_either(lab: Lab, tmp_path: Path) -> None:
    values = lab.values(run={"checkpoint_every": 2, "log_every": 100})
    with pytest.raises(NonFiniteLossError, match=r"gradient .*at step 3"):
        lab.fit(values, tmp_path / "run", callbacks=(Poison(3, "gradient"),))
    assert checkpoint_of(tmp_path / "run").name == "step-00000002"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 400, 15_000, 30_000], ids=["metrics", "a later row", "weights", "state"])
def test_a_full_disk_is_one_line(lab: Lab, tmp_path: Path, size: int) -> None:
    training = lab.prepare(lab.values(), tmp_path / "run")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with largest_file(size), pytest.raises(DataError) as caught:
        lab.train(training, tmp_path / "run")
    # Lightning's own handler swallows SIGTERM: a process that goes on, and those it forks, could not be ended.
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").rglob("*.tmp*"))
