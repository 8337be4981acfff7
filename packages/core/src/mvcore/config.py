"""The configuration of a run: what may stand in it, and what it must look like. Imports neither torch nor lightning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mvcore.config_base import Options
from mvcore.training.weights import Weight

LEDGER = "core.ledger"
DEFAULT_BATCH = 64
"""Objects or views of a step where a source says nothing about it."""


def _plain_names(parts: dict[str, Any]) -> dict[str, Any]:
    # Names become part of checkpoint keys, metric names, files and random seeds.
    for name in parts:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{name!r} cannot be a name; use letters, digits, '_', '-' and '.'")
    return parts


class Part(Options):
    """An entry that names a registered part.

    Args:
        args: the part's own options; in YAML they stand beside the keys that the section reserves.
    """

    id: str
    args: dict[str, Any] = Field(default_factory=dict)

    @property
    def reserved(self) -> list[str]:
        """The keys that are the section's own."""
        return [name for name in type(self).model_fields if name != "args"]

    def flat(self) -> dict[str, Any]:
        """As it stands in YAML: reserved keys and the part's options side by side, others like them under `args`."""
        values = self.model_dump(mode="json", by_alias=True, exclude={"args"}, exclude_none=True)
        hidden = {name: value for name, value in self.args.items() if name in type(self).model_fields}
        plain = {name: value for name, value in self.args.items() if name not in hidden}
        return {**values, **plain, **({"args": hidden} if hidden else {})}


Degrees = Annotated[float, Field(ge=0, le=180)]


class SourcePart(Part):
    """A data source: every step draws one batch from each.

    Args:
        sampling: `objects` (`batch_size` counts objects, `views_per_object` a number or a range [low, high]), `views`
            (uniform over views, `batch_size` counts views) or `pairs` (two views an object).
        batch_size: of a step, over all ranks; null = 64, with `share` its part of `run.batch_size`, with
            `views_per_batch` no limit.
        share: weight with which sources divide `run.batch_size` among themselves.
        views_draw: with a range, whether the number of views is drawn for each object, once for a batch, or once
            together with the views' indices, which then are the same for all objects of a batch.
        views_per_batch: the most views of a step, over all ranks; objects are added until it is full.
        short_objects: whether an object with fewer views than are drawn is refused or gives all of them.
        balance: whether views come equally often from each object, or objects or views from each category.
        pair_angle: lowest and highest angle in degrees between the two cameras of a pair.
        pair_angle_of: the whole relative rotation, or the direction of the optical axes alone.
        pair_covisibility: least share of the first view's foreground that the second view sees.
        outlier_share: part of the views of a step that are drawn from those that a trainer prefers.
        readers: the losses and trainers that may read it; null = all.
    """

    sampling: Literal["objects", "views", "pairs"] = "objects"
    batch_size: int | None = Field(default=None, ge=1)
    share: float | None = Field(default=None, gt=0)
    views_per_object: int | tuple[int, int] | None = None
    views_draw: Literal["object", "batch", "indices"] = "object"
    views_per_batch: int | None = Field(default=None, ge=1)
    short_objects: Literal["refuse", "take_all"] = "refuse"
    balance: Literal["none", "object", "category"] = "none"
    pair_angle: tuple[Degrees, Degrees] | None = None
    pair_angle_of: Literal["rotation", "direction"] = "rotation"
    pair_covisibility: float | None = Field(default=None, gt=0, le=1)
    outlier_share: float = Field(default=0.0, ge=0, lt=1)
    readers: tuple[str, ...] | None = None

    @field_validator("views_per_object")
    @classmethod
    def _ordered(cls, value: Any) -> Any:
        low, high = value if isinstance(value, tuple) else (value, value)
        if value is not None and not 1 <= low <= high:
            raise ValueError("must be a number of at least 1, or a range [low, high] with 1 <= low <= high")
        return value

    @field_validator("pair_angle")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if value is not None and value[0] > value[1]:
            raise ValueError("must be a range [low, high] in degrees, from 0 to 180")
        return value

    @model_validator(mode="after")
    def _drawable(self) -> SourcePart:
        """Refuses keys that the sampling would pass over, and pairs of keys that contradict each other."""
        of_sampling = {"views_per_batch": "objects", "short_objects": "objects", "outlier_share": "views"}
        of_sampling |= dict.fromkeys(("pair_angle", "pair_angle_of", "pair_covisibility"), "pairs")
        for key, sampling in of_sampling.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.sampling != sampling:
                raise ValueError(f"{key} is for sampling: {sampling}, and this source has sampling: {self.sampling}")
        for first, second, clash in (
            ("batch_size", "share", self.batch_size is not None and self.share is not None),
            ("views_per_batch", "share", self.views_per_batch is not None and self.share is not None),
            ("views_per_batch", "balance: category", self.views_per_batch and self.balance == "category"),
            ("outlier_share", f"balance: {self.balance}", self.outlier_share and self.balance != "none"),
            (
                "short_objects: take_all",
                "views_draw: indices",
                self.short_objects == "take_all" and self.views_draw == "indices",
            ),
        ):
            if clash:
                raise ValueError(f"{first} and {second} do not go together; leave one of them out")
        return self


class LossPart(Part):
    """A loss term: its weight in the sum and the sources whose rows it gets (default: every source that fits)."""

    weight: Weight = 1.0
    on: tuple[str, ...] | None = Field(default=None, min_length=1)


class TrainerPart(Part):
    """A trainer and the sources that it works on (default: every source that fits)."""

    on: tuple[str, ...] | None = Field(default=None, min_length=1)


class OptimizerSettings(Options):
    """AdamW and its schedule.

    Args:
        decay: `all` parameters decay, or only `matrices` (two or more dimensions), sparing gains, biases and scales.
        schedule: shape of the learning rate after `warmup_steps` linear steps; `cosine-epochs` steps once an epoch over
            `schedule_epochs` epochs, as torch's CosineAnnealingLR.
        clip_norm: largest norm of the gradient; null = unclipped.
        groups: parameters whose checkpoint name contains `match` get their own `lr` or `weight_decay`.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    decay: Literal["all", "matrices"] = "matrices"
    schedule: Literal["constant", "linear", "cosine", "cosine-epochs"] = "cosine"
    schedule_epochs: int | None = Field(default=None, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    groups: tuple[ParameterGroup, ...] = ()


class ParameterGroup(Options):
    """Settings of its own for the parameters whose checkpoint name contains `match`."""

    match: str
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class AlarmSettings(Options):
    """When the features of a step count as collapsed.

    Args:
        every: steps between looks; each is one wait for the device.
        after: the first step that a warning may name.
        rank: least participation ratio of the features about their mean, in steps of 16 objects or more.
        spread: least mean of 1 - cosine over all pairs of views of a step.
    """

    every: int = Field(default=10, ge=1)
    after: int = Field(default=50, ge=0)
    rank: float = Field(default=3.0, ge=0)
    spread: float = Field(default=0.05, ge=0, le=2)


class GradientSettings(Options):
    """What is measured of each term's gradient.

    Args:
        every: steps between measurements, each of which costs a backward pass for each term.
        cosines: also the angle between each two terms' gradients, which takes memory for one gradient a term.
    """

    every: int = Field(ge=1)
    cosines: bool = True


class RunSettings(Options):
    """How long, where and how a run goes.

    Args:
        micro_batch: views encoded at a time with gradient; the losses still see the whole batch (gradient cache).
            `auto` = the whole batch at once.
        batch_size: what a step draws from all sources with a `share` together.
        epoch_steps: steps that count as an epoch; null = one pass of the first source.
        checkpoint_every: steps between checkpoints; the last one is always saved.
        log_every: steps between rows of metrics.
        log_terms: what is logged of each term beside their sum: its `raw` value, its `weighted` one.
        gradients: norms of the terms' gradients and their cosines, every few steps; null = not measured.
        devices: processes on each machine, each with a device of its own; `auto` = one, or as many as torchrun or srun
            started.
        workers: processes that load data; `auto` = 0 on two cores or fewer, else up to 8.
        alarm: when to warn that the features collapse; null = never.
    """

    max_steps: int = Field(default=1000, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    micro_batch: int | Literal["auto"] = "auto"
    epoch_steps: int | None = Field(default=None, ge=1)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    devices: int | Literal["auto"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    strategy: str = "auto"
    seed: int = Field(default=0, ge=0)
    workers: int | Literal["auto"] = "auto"
    log_every: int = Field(default=10, ge=1)
    log_terms: tuple[Literal["raw", "weighted"], ...] = ("raw", "weighted")
    gradients: GradientSettings | None = None
    checkpoint_every: int = Field(default=500, ge=1)
    alarm: AlarmSettings | None = AlarmSettings()
    output: str | None = None

    @field_validator("micro_batch", "devices")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and value < 1:
            raise ValueError("must be 'auto' or at least 1")
        return value


class ValidateSettings(Options):
    """What is measured, on which sources, and how often while training.

    Args:
        every: steps between measurements while training; null = only before and after.
        data: sources by name.
        on: evaluators by id with their options.
        best: the figure whose best checkpoint is kept, as `core.zero_shot/top1/ood`.
        ledger: `core.ledger` is measured before and after, whatever stands in `on`.
    """

    every: int | None = Field(default=None, ge=1)
    data: dict[str, SourcePart] = Field(default_factory=dict)
    on: dict[str, Part] = Field(default_factory=dict)
    best: str | None = None
    views_per_batch: int = Field(default=256, ge=1)
    ledger: bool = True

    _check_names = field_validator("data", "on")(_plain_names)

    def ledger_part(self) -> Part | None:
        """The ledger that is measured beside `on`; None where it is off, or stands there itself.

        Its zero-shot row asks as `core.zero_shot` of this run does, so that a table shows one number.
        """
        if not self.ledger or any(part.id == LEDGER for part in self.on.values()):
            return None
        asked = next((part.args for part in self.on.values() if part.id == "core.zero_shot"), None)
        if asked is None:
            return Part(id=LEDGER)
        return Part(id=LEDGER, args={"zero_shot": {k: v for k, v in asked.items() if k not in ("topk", "groups")}})


class RunConfig(Options):
    """A whole run, as it stands in YAML."""

    plugins: tuple[str, ...] = ()
    demo: bool = False
    control: bool = False
    encoder: Part
    adapters: dict[str, Part] = Field(default_factory=dict)
    data: dict[str, SourcePart]
    losses: dict[str, LossPart]
    trainers: dict[str, TrainerPart] = Field(default_factory=dict)
    optimizer: OptimizerSettings = OptimizerSettings()
    run: RunSettings = RunSettings()
    validation: ValidateSettings = Field(default=ValidateSettings(), alias="validate")

    _check_names = field_validator("adapters", "data", "losses", "trainers")(_plain_names)

    @model_validator(mode="after")
    def _has_work(self) -> RunConfig:
        if not self.data:
            raise ValueError("data: no source; name at least one")
        if not self.losses:
            raise ValueError("losses: no loss; name at least one")
        return self

    @model_validator(mode="after")
    def _shares(self) -> RunConfig:
        sharing = [name for name, part in self.data.items() if part.share is not None]
        if sharing and self.run.batch_size is None:
            raise ValueError(f"data.{sharing[0]}.share: say what is shared, with run.batch_size")
        if self.run.batch_size is not None and not sharing:
            raise ValueError("run.batch_size: no source has a share of it; give each source a share, or its batch_size")
        if empty := [name for name in sharing if self.batch_sizes()[name] == 0]:
            raise ValueError(f"data.{empty[0]}.share: nothing of run.batch_size {self.run.batch_size} falls to it")
        return self

    def batch_sizes(self) -> dict[str, int | None]:
        """What each source draws in a step: objects, or views with `sampling: views`; None = what `views_per_batch`
        allows.

        Shares are rounded down, and what is left over goes one each to the largest remainders, earlier sources first.
        """
        sizes = {
            name: part.batch_size or (DEFAULT_BATCH if part.views_per_batch is None else None)
            for name, part in self.data.items()
        }
        shares = {name: Fraction(part.share) for name, part in self.data.items() if part.share is not None}
        if not shares or self.run.batch_size is None:
            return sizes
        exact = {name: share * self.run.batch_size / sum(shares.values()) for name, share in shares.items()}
        whole = {name: int(part) for name, part in exact.items()}
        left = self.run.batch_size - sum(whole.values())
        for name in sorted(exact, key=lambda name: whole[name] - exact[name])[:left]:
            whole[name] += 1
        return {**sizes, **whole}

    def to_plain(self) -> dict[str, Any]:
        """Plain values for YAML, every key of the run's own with its value."""
        values = self.model_dump(
            mode="json", by_alias=True, exclude={"encoder", "adapters", "data", "losses", "trainers"}
        )
        measured = values.pop("validate")
        measured["data"] = {name: part.flat() for name, part in self.validation.data.items()}
        measured["on"] = {name: part.flat() for name, part in self.validation.on.items()}
        parts: dict[str, Any] = {"encoder": self.encoder.flat()}
        for section in ("adapters", "data", "losses", "trainers"):
            parts[section] = {name: part.flat() for name, part in getattr(self, section).items()}
        head = {key: values.pop(key) for key in ("plugins", "demo", "control")}
        return {**head, **parts, **values, "validate": measured}


def normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values of YAML in the form of `RunConfig`: every entry with its id, its own options under `args`.

    An id defaults to the entry's name, except for data sources, which have names of their own. What is of the wrong
    kind is left for the validation to find.
    """
    found = {key: value for key, value in values.items() if value is not None or key == "encoder"}
    if "encoder" in found:
        found["encoder"] = gathered(found["encoder"], Part)
    sections: tuple[tuple[str, type[Part], bool], ...] = (
        ("adapters", Part, True),
        ("data", SourcePart, False),
        ("losses", LossPart, True),
        ("trainers", TrainerPart, True),
    )
    for key, model, named in sections:
        if key in found:
            found[key] = _entries(found[key], model, named)
    measured = found.get("validate")
    if isinstance(measured, Mapping):
        measured = dict(measured)
        if "data" in measured:
            measured["data"] = _entries(measured["data"], SourcePart, named=False)
        if "on" in measured:
            measured["on"] = _entries(listed_entries(measured["on"]), Part, named=True)
        found["validate"] = {key: value for key, value in measured.items() if value is not None}
    return found


def listed_entries(section: Any) -> Any:
    """A list of ids as entries without options."""
    return {str(name): {} for name in section} if isinstance(section, (list, tuple)) else section


def _entries(section: Any, model: type[Part], named: bool) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {
        str(name): gathered({"id": str(name), **(entry or {})} if named else entry or {}, model)
        if isinstance(entry, Mapping) or entry is None
        else entry
        for name, entry in section.items()
    }


def gathered(entry: Any, model: type[Part]) -> Any:
    """An entry with its own options under `args`."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("args", {}), Mapping):
        return entry
    own = {name: value for name, value in entry.items() if name in model.model_fields}
    others = {name: value for name, value in entry.items() if name not in model.model_fields}
    return {**own, "args": {**entry.get("args", {}), **others}}
