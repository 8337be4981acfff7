"""The configuration of a run: what may stand in it, and what it must look like. Imports neither torch nor lightning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mvcore.config_base import Options


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
        values = self.model_dump(mode="json", exclude={"args"}, exclude_none=True)
        hidden = {name: value for name, value in self.args.items() if name in type(self).model_fields}
        plain = {name: value for name, value in self.args.items() if name not in hidden}
        return {**values, **plain, **({"args": hidden} if hidden else {})}


class SourcePart(Part):
    """A data source: every step draws one batch from each.

    Args:
        sampling: `objects` (`batch_size` counts objects, `views_per_object` a number or a range [low, high]), `views`
            (uniform over views, `batch_size` counts views) or `pairs` (two views an object).
        views_draw: with a range, whether the number of views is drawn for each object or once for a batch.
    """

    sampling: Literal["objects", "views", "pairs"] = "objects"
    batch_size: int = Field(default=64, ge=1)
    views_per_object: int | tuple[int, int] | None = None
    views_draw: Literal["object", "batch"] = "object"

    @field_validator("views_per_object")
    @classmethod
    def _ordered(cls, value: Any) -> Any:
        low, high = value if isinstance(value, tuple) else (value, value)
        if value is not None and not 1 <= low <= high:
            raise ValueError("must be a number of at least 1, or a range [low, high] with 1 <= low <= high")
        return value


class LossPart(Part):
    """A loss term: its weight in the sum and the sources whose rows it gets (default: every source that fits)."""

    weight: float = 1.0
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


class RunSettings(Options):
    """How long, where and how a run goes.

    Args:
        micro_batch: views encoded at a time with gradient; the losses still see the whole batch (gradient cache).
            `auto` = the whole batch at once.
        epoch_steps: steps that count as an epoch; null = one pass of the first source.
        checkpoint_every: steps between checkpoints; the last one is always saved.
        log_every: steps between rows of metrics.
        devices: `auto` or 1, one device; more are refused so far.
        workers: processes that load data; `auto` = 0 on two cores or fewer, else up to 8.
    """

    max_steps: int = Field(default=1000, ge=1)
    micro_batch: int | Literal["auto"] = "auto"
    epoch_steps: int | None = Field(default=None, ge=1)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    devices: int | Literal["auto"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    strategy: str = "auto"
    seed: int = Field(default=0, ge=0)
    workers: int | Literal["auto"] = "auto"
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    output: str | None = None

    @field_validator("micro_batch")
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
    """

    every: int | None = Field(default=None, ge=1)
    data: dict[str, SourcePart] = Field(default_factory=dict)
    on: dict[str, Part] = Field(default_factory=dict)
    best: str | None = None
    views_per_batch: int = Field(default=256, ge=1)

    _check_names = field_validator("data", "on")(_plain_names)


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
