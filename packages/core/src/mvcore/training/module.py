"""The Lightning module of a run: one optimizer step per batch, what trains by checkpoint name, and what is logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mvcore.config import OptimizerSettings, RunSettings
from mvcore.errors import ConfigError, NonFiniteLossError
from mvcore.parts import Adapter, copy_strictly
from mvcore.training.distributed import average_gradients
from mvcore.training.gradients import Measured, TermGradients
from mvcore.training.objective import Objective
from mvcore.training.optimization import learning_rate, make_optimizer
from mvcore.training.terms import Outcome
from mvcore.training.trained import load_pipeline_state, trainable, trained_state, under
from mvcore.types import ViewBatch

Batches = dict[str, ViewBatch]
MakeLoader = Callable[[int, int, int], Iterable[Batches]]


class RunModule(LightningModule):
    """Steps an `Objective`.

    Every step seeds torch from (seed, step, rank), so that a resumed run and a run of other length draw the same.

    Args:
        objective: model and losses.
        settings, optimizer: the run's settings.
        epoch_steps: steps of an epoch.
        replaces_step: a trainer that defines `step(run, batches)` and steps in place of this module.

    Attributes:
        make_loader: makes the loader from rank, world size and first step.
        start: the global step that training begins at.
        outcome, grad_norm: what the last step found; tensors on the device.
        gradients: what was measured of the terms' gradients in the last step; None where nothing was.
        lr: the learning rate of the last step, of the first group of parameters.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        settings: RunSettings,
        optimizer: OptimizerSettings,
        epoch_steps: int,
        replaces_step: Any = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective = objective
        self.settings = settings
        self.optimizer_settings = optimizer
        self.epoch_steps = epoch_steps
        self.replaces_step = replaces_step
        self.make_loader: MakeLoader | None = None
        self.start = 0
        self.outcome: Outcome | None = None
        self.grad_norm: Tensor | None = None
        self.gradients: Measured | None = None
        self.lr = 0.0
        self._loader: Any = None
        self._bad: dict[str, Tensor] = {}

    # -- what trains ---------------------------------------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by checkpoint name, each once."""
        names: dict[str, nn.Parameter] = {}
        pipeline = self.objective.pipeline
        for name, parameter in pipeline.backbone_parameters():
            if parameter.requires_grad:
                names[f"backbone/{name}"] = parameter
        for link in pipeline.links:
            own = link.module.trained_parameters() if isinstance(link.module, Adapter) else trainable(link.module)
            names |= {f"adapters/{link.name}/{name}": parameter for name, parameter in own.items()}
        for term in self.objective.terms:
            for name, parameter in term.module.named_parameters():
                if parameter.requires_grad:
                    names[f"losses/{term.name}/{name}"] = parameter
        if not names:
            raise ConfigError("nothing trains: set encoder.train, or add an adapter that trains")
        return names

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Only what trains: `backbone/<library key>`, `adapters/<name>/<key>`, `losses/<name>/<key>`."""
        pipeline = self.objective.pipeline
        state = {f"backbone/{name}": value.detach() for name, value in pipeline.backbone_state().items()}
        for link in pipeline.links:
            for key, value in trained_state(link.module).items():
                state[f"adapters/{link.name}/{key}"] = value
        for term in self.objective.terms:
            for key, value in trained_state(term.module).items():
                state[f"losses/{term.name}/{key}"] = value
        return state

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Restores `state_dict`, strictly.

        Raises:
            WeightsError: a missing or unexpected key, or a wrong shape.
        """
        load_pipeline_state(self.objective.pipeline, state_dict)
        for term in self.objective.terms:
            own = under(f"losses/{term.name}/", state_dict)
            copy_strictly(own, trainable(term.module), f"loss {term.name}")

    # -- stepping ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Any:
        """Made here, where the rank is known."""
        if self.make_loader is None:
            raise RuntimeError("a RunModule trains through mvcore.training.fit")
        self._loader = self.make_loader(self.global_rank, self.trainer.world_size, self.start)
        return self._loader

    def note_position(self, steps: int) -> None:
        """Tells the loader, which is ahead, how many batches were used; called before a checkpoint is saved."""
        self._loader.position = steps

    def transfer_batch_to_device(self, batch: Batches, device: torch.device, dataloader_idx: int) -> Batches:
        """Left on the host: the objective moves batches itself, chunk by chunk where there is a gradient cache."""
        return batch

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.optimizer_settings, self.trained())
        factor = learning_rate(self.optimizer_settings, max_steps=self.settings.max_steps, epoch_steps=self.epoch_steps)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def training_step(self, batch: Batches, batch_idx: int) -> None:
        self.objective.at_step(self.global_step)
        if self.replaces_step is not None:
            self.outcome = self.replaces_step.step(self, batch)
            return
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        self._reseed(0)
        gradients = self._term_gradients()
        if self.settings.micro_batch == "auto":
            self.outcome = self.objective.step(batch, self.manual_backward, gradients)
        else:
            self.outcome = self.objective.cached_step(
                batch, self.manual_backward, self.settings.micro_batch, self._reseed, gradients
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        average_gradients(parameters)
        self.gradients = None if gradients is None else gradients.measured()
        self._note_non_finite({f"loss {name}": value for name, value in self.outcome.terms.items()})
        if self.optimizer_settings.clip_norm is not None:
            self.grad_norm = nn.utils.clip_grad_norm_(parameters, self.optimizer_settings.clip_norm)
            self._note_non_finite({"the gradient": self.grad_norm})
        self.lr = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()

    def _term_gradients(self) -> TermGradients | None:
        """What collects this step's gradients term by term, in the steps that are measured."""
        wanted = self.settings.gradients
        if wanted is None or (self.global_step + 1) % wanted.every:
            return None
        shared = [parameter for name, parameter in self.trained().items() if not name.startswith("losses/")]
        return TermGradients(shared, cosines=wanted.cosines)

    def _reseed(self, part: int) -> None:
        # A mixed 64-bit key: neighbouring steps must not give neighbouring seeds.
        key = (self.settings.seed * 0x9E3779B97F4A7C15 + self.global_step * 0xBF58476D1CE4E5B9) % 2**63
        seed = (key + self.global_rank * 0x94D049BB133111EB + part) % 2**63
        # Not torch.manual_seed: for each kind of device that is not in use it formats a traceback, 1 ms a step.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    # -- finiteness ----------------------------------------------------------------------------------------------------

    def _note_non_finite(self, values: Mapping[str, Tensor]) -> None:
        """Marks on the device, without waiting for it, the first step at which each value was not finite."""
        for name, value in values.items():
            never = torch.full((), -1, dtype=torch.int64, device=value.device)
            first = self._bad.get(name, never)
            here = torch.where(torch.isfinite(value), never, torch.full_like(never, self.global_step))
            self._bad[name] = torch.where(first >= 0, first, here)

    def check_finite(self) -> None:
        """Reads the marks (a device sync).

        Raises:
            NonFiniteLossError: a term or the gradient was NaN or infinite; names the earliest and its step.
        """
        steps = {name: int(first) for name, first in self._bad.items()}
        bad = [name for name, step in steps.items() if step >= 0]
        if bad:
            name = min(bad, key=lambda name: steps[name])
            raise NonFiniteLossError(
                f"{name} became NaN or infinite at step {steps[name]}; lower optimizer.lr or the loss's weight, or "
                "look at its inputs; the last good checkpoint is kept"
            )

    def check_weights(self) -> None:
        """Reads the trained weights (a device sync).

        Raises:
            NonFiniteLossError: one is NaN or infinite; names it.
        """
        for name, value in self.state_dict().items():
            if not bool(value.isfinite().all()):
                raise NonFiniteLossError(
                    f"the weight {name} became NaN or infinite by step {self.global_step}; lower optimizer.lr; the "
                    "last good checkpoint is kept"
                )
