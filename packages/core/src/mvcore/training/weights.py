"""What a loss counts for in the sum, which may change with the step. Imports no torch: a configuration holds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from mvcore.config_base import Options

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
WeightAt: TypeAlias = Callable[[int], float]
"""A weight by 0-based step."""


class WeightSchedule(Options):
    """A weight that changes with the step; steps are counted from 0.

    Args:
        schedule: `constant` is `to` in every step; `linear` and `cosine` go from `from` at step `start` to `to`, which
            they reach after `steps` steps and keep.
        from_: where `linear` and `cosine` begin; written `from`.
        to: the weight, or where `linear` and `cosine` end.
        steps: how many steps they take; null = up to `end`, or to the end of the run.
        warmup: steps from `start` on in which the weight rises linearly from 0, as a factor on the schedule.
        start: the first step in which the term counts.
        end: the first step in which it no longer counts; null = it counts to the end of the run.
    """

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    from_: Amount = Field(default=0.0, alias="from")
    to: Amount = 1.0
    steps: int | None = Field(default=None, ge=1)
    warmup: int = Field(default=0, ge=0)
    start: int = Field(default=0, ge=0)
    end: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> WeightSchedule:
        if self.schedule == "constant" and (self.from_ != 0 or self.steps is not None):
            key = "from" if self.from_ != 0 else "steps"
            raise ValueError(f"{key} is for schedule: linear or cosine, and this one is constant")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end} is not behind start {self.start}, so the term would never count")
        return self

    def at(self, step: int, max_steps: int) -> float:
        """The weight of a step; 0 = the term does not count in it.

        Args:
            max_steps: steps of the run, up to which a schedule without `steps` and `end` goes.
        """
        if step < self.start or (self.end is not None and step >= self.end):
            return 0.0
        since = step - self.start
        rise = (since + 1) / self.warmup if since < self.warmup else 1.0
        if self.schedule == "constant":
            return rise * self.to
        whole = (max_steps if self.end is None else self.end) - self.start
        progress = min(since / (self.steps or max(1, whole)), 1.0)
        if self.schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return rise * ((1 - progress) * self.from_ + progress * self.to)

    def __str__(self) -> str:
        constant = self.schedule == "constant"
        moving = f"{self.to:g}" if constant else f"{self.schedule} from {self.from_:g} to {self.to:g}"
        over = f" over {self.steps} steps" if self.steps is not None else ""
        warm = f", warm-up of {self.warmup} steps" if self.warmup else ""
        first = f", from step {self.start}" if self.start else ""
        last = f", before step {self.end}" if self.end is not None else ""
        return f"{moving}{over}{warm}{first}{last}"


def _form(value: Any) -> str:
    # The names stand in no configuration, so that an error's path can be told from the keys that were written.
    return "a schedule" if isinstance(value, (dict, WeightSchedule)) else "a number"


Weight: TypeAlias = Annotated[
    Annotated[Amount, Tag("a number")] | Annotated[WeightSchedule, Tag("a schedule")], Discriminator(_form)
]
"""A number, or a schedule of keys and values."""


def weight_at(weight: float | WeightSchedule, max_steps: int) -> WeightAt:
    """The weight as a function of the step, in a run of `max_steps` steps."""
    if isinstance(weight, WeightSchedule):
        return lambda step: weight.at(step, max_steps)
    return lambda step: weight


def counts(weight: float | WeightSchedule, max_steps: int) -> bool:
    """Whether a term has a weight in any step of the run."""
    if isinstance(weight, WeightSchedule):
        return any(weight.at(step, max_steps) > 0 for step in range(weight.start, max_steps))
    return weight != 0


def describe(weight: float | WeightSchedule) -> str:
    """The weight in a few words."""
    return str(weight) if isinstance(weight, WeightSchedule) else f"{weight:g}"
