"""What a plugin registers: one frozen dataclass per kind of part, with nothing heavy behind it.

A spec names its parts as `"package.module:Name"` strings, so that listing plugins imports neither torch nor lightning;
`mvcore.api.build` resolves them when a run needs them. The id of a part is `<plugin>.<name>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias, cast, get_args

MVCORE_API = 1
"""The plugin interface that this version speaks; a plugin module declares the one it was written for."""

Axis: TypeAlias = Literal["view", "object", "caption", "none"]
"""What a row of a feature or of a published state stands for."""

EncoderKind: TypeAlias = Literal["backbone", "adapter"]
LossSampling: TypeAlias = Literal["any", "objects", "views", "pairs"]
LossScope: TypeAlias = Literal["batch", "object"]
CheckStatus: TypeAlias = Literal["ok", "warning", "failed"]
Severity: TypeAlias = Literal["error", "warning"]

Keys: TypeAlias = "frozenset[str] | Iterable[str]"

CORE_AXES: Mapping[str, Axis] = MappingProxyType(
    {
        "view": "view",
        "object": "object",
        "text": "caption",
        "dense": "view",
        "logit_scale": "none",
        "logit_bias": "none",
    }
)
"""The features that core defines, and what their rows stand for."""

BATCH_FIELDS = frozenset(
    {"images", "captions", "cameras", "depth", "masks", "tracks", "object_ids", "view_ids", "embeddings"}
)
"""Fields of a ViewBatch that a part may need; the batch's layout is open to all."""

STATE = "state:"
"""Prefix of the keys that trainers publish, as in `state:ovt.anchors`."""

NAME = re.compile(r"[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*")
"""The form of the names of plugins and parts."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _checked_keys(owner: str, what: str, keys: Keys) -> frozenset[str]:
    if isinstance(keys, str):
        raise ValueError(f"{owner}: {what} must be a set of keys, not the string {keys!r}; write {{{keys!r}}}")
    checked = frozenset(keys)
    for key in checked:
        _check_text(owner, what, key)
    return checked


def _check_text(owner: str, what: str, key: object) -> None:
    if not isinstance(key, str) or not key:
        raise ValueError(f"{owner}: {what} must hold the names of keys, not {key!r}")


def _check_choice(owner: str, what: str, value: object, allowed: object) -> None:
    choices: tuple[object, ...] = get_args(allowed)
    if value not in choices:
        raise ValueError(f"{owner}: {what} must be {' or '.join(map(repr, choices))}, not {value!r}")


def _check_axes(owner: str, what: str, axes: object) -> None:
    if not isinstance(axes, Mapping):
        raise ValueError(f"{owner}: {what} must be a mapping from keys to what their rows stand for, not {axes!r}")
    for key, axis in cast("Mapping[object, object]", axes).items():
        _check_text(owner, what, key)
        _check_choice(owner, f"{what}[{key!r}]", axis, Axis)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every registered part has.

    Args:
        name: lower-case name, unique among the plugin's parts of this kind (`a-z`, digits, `_`, `-`).
        summary: one line for `mvcore plugins show`.
        factory: `"package.module:Name"` of the class or function that makes the part, or the class itself.
        config: `"package.module:Name"` of the pydantic model of its options, or the model itself; none = no options.
        citation: the paper or source, if any.
        licence: SPDX id where it differs from the plugin's own.

    Raises:
        ValueError: a name, summary or reference of the wrong form.
    """

    part: ClassVar[str] = "part"

    name: str
    summary: str
    factory: Any = ""
    config: Any = None
    citation: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        owner = f"{type(self).__name__} {self.name!r}"
        if not NAME.fullmatch(str(self.name)):
            raise ValueError(f"{owner}: a name is lower-case letters, digits, '_' and '-', starting with a letter")
        if not self.summary or "\n" in str(self.summary):
            raise ValueError(f"{owner}: summary must be one line")
        for what, reference in (("factory", self.factory), ("config", self.config)):
            if isinstance(reference, str) and reference and not _REFERENCE.fullmatch(reference):
                raise ValueError(f"{owner}: {what} must look like 'package.module:Name', not {reference!r}")
        if not self.factory and type(self).part != "recipe":
            raise ValueError(f"{owner}: factory is missing")
        for what in ("needs", "provides"):
            keys = getattr(self, what, None)
            if keys is not None and not isinstance(keys, Mapping):
                object.__setattr__(self, what, _checked_keys(owner, what, keys))


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Spec):
    """A backbone (features from images, texts or embeddings) or an adapter (changes a backbone or its features).

    Needs or provides that depend on the options are methods `needs()` and `provides()` of the config model, which then
    win over the fields here.

    Args:
        kind: `backbone` or `adapter`.
        needs: features and batch fields that an adapter's `forward` reads; of a backbone, the batch fields that it
            reads in the place of images, as `embeddings`.
        provides: features that it can give (backbone) or gives (adapter).
        axes: what the rows of features other than core's stand for, as `{"mvc_heads.decoded": "view"}`.
    """

    part: ClassVar[str] = "encoder"

    kind: EncoderKind = "backbone"
    needs: Keys = frozenset()
    provides: Keys = frozenset()
    axes: Mapping[str, Axis] = field(default_factory=dict[str, Axis])

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"EncoderSpec {self.name!r}"
        _check_choice(owner, "kind", self.kind, EncoderKind)
        _check_axes(owner, "axes", self.axes)


@dataclass(frozen=True, kw_only=True)
class LossSpec(Spec):
    """A training loss: an `nn.Module` with `forward(features, batch)`.

    Args:
        needs: features, batch fields and `state:` keys that it reads; another read is an error.
        sampling: how its sources must draw views; `any` accepts all.
        scope: `batch` sees the rows of all chunks and ranks; `object` is evaluated chunk by chunk and returns
            `{"loss": sum, "count": n}`.
    """

    part: ClassVar[str] = "loss"

    needs: Keys = frozenset()
    sampling: LossSampling = "any"
    scope: LossScope = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"LossSpec {self.name!r}"
        _check_choice(owner, "sampling", self.sampling, LossSampling)
        _check_choice(owner, "scope", self.scope, LossScope)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """A source of views: indexed (`len`, `views_of`, `load`) or a stream; the opened one says what it provides."""

    part: ClassVar[str] = "dataset"


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(Spec):
    """A Lightning callback that may publish state for losses.

    Args:
        needs: features and batch fields that it embeds or observes.
        provides: published state and what its rows stand for, as `{"state:ovt.anchors": "object"}`.
        indexed: it needs a source with ids, so a stream is refused.
        prefers_views: it names views (`run.prefer`) of which a source with an `outlier_share` draws more.
        replaces_step: it defines `step(run, batches)`; at most one such trainer may be in a run.
    """

    part: ClassVar[str] = "trainer"

    needs: Keys = frozenset()
    provides: Mapping[str, Axis] = field(default_factory=dict[str, Axis])
    indexed: bool = False
    prefers_views: bool = False
    replaces_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"TrainerSpec {self.name!r}"
        _check_axes(owner, "provides", self.provides)
        for key in self.provides:
            if not key.startswith(STATE):
                raise ValueError(f"{owner}: what a trainer provides begins with {STATE!r}; write {STATE + key!r}")


@dataclass(frozen=True, kw_only=True)
class EvaluatorSpec(Spec):
    """A measurement: called with `(model, sources, output)`, returns an `EvalResult`.

    Args:
        needs: features that it asks of the model, and batch fields that it reads of the sources: `mvcore eval` opens
            stores with `depth` only where an evaluator needs it.
        own_files: it reads files that its options name, and no source; `mvcore eval` then asks for none.
    """

    part: ClassVar[str] = "evaluator"

    needs: Keys = frozenset()
    own_files: bool = False


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(Spec):
    """A named YAML run configuration inside the package.

    Args:
        path: `"package:folder/name.yaml"`.
        default: the recipe that `--plugin NAME` takes when the user brings data or an encoder.
        importer: `"package.module:function"` for `mvcore import`: from the tensors of a checkpoint of the method's
            authors, by name, to the same under the names of this recipe's own checkpoints (`backbone/<library key>`
            for every weight of the model, or for none where the checkpoint holds only what was trained beside it;
            `adapters/<name>/<key>`).
        importer_base: `"package.module:function"` for `mvcore import`: from the name of such a checkpoint's file to the
            options of the encoder that it was trained over, as `{"model": NAME}`; `{}` for a name that tells nothing.
            Another `model` than that is refused, other options may be set to something else.
    """

    part: ClassVar[str] = "recipe"

    path: str = ""
    default: bool = False
    importer: str = ""
    importer_base: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[\w./-]+\.yaml", self.path) or ".." in self.path:
            raise ValueError(f"RecipeSpec {self.name!r}: path must look like 'package:recipes/name.yaml'")
        for what, reference in (("importer", self.importer), ("importer_base", self.importer_base)):
            if reference and not _REFERENCE.fullmatch(reference):
                raise ValueError(f"RecipeSpec {self.name!r}: {what} must look like 'package.module:function'")


@dataclass(frozen=True, kw_only=True)
class CommandSpec(Spec):
    """A command of the `mvcore` program; `factory` names a `typer.Typer` app or a plain function of typed options."""

    part: ClassVar[str] = "command"


@dataclass(frozen=True, kw_only=True)
class CheckSpec(Spec):
    """A check of `mvcore doctor`; `factory` names a function without arguments that returns `CheckResult`s."""

    part: ClassVar[str] = "check"


@dataclass(frozen=True)
class CheckResult:
    """One line of `mvcore doctor`: `ok`, `warning` or `failed`, what was found, and what to do about it."""

    status: CheckStatus
    text: str
    advice: str = ""

    def __post_init__(self) -> None:
        _check_choice("CheckResult", "status", self.status, CheckStatus)


@dataclass(frozen=True)
class Problem:
    """What a plugin's `mvcore_check_run` found wrong in a run before any weight was loaded; an error stops the run."""

    text: str
    severity: Severity = "error"

    def __post_init__(self) -> None:
        _check_choice("Problem", "severity", self.severity, Severity)


@dataclass(frozen=True)
class Section:
    """A part of a run's report: a title and Markdown text."""

    title: str
    markdown: str


SPEC_TYPES: tuple[type[Spec], ...] = (
    EncoderSpec,
    LossSpec,
    DatasetSpec,
    TrainerSpec,
    EvaluatorSpec,
    RecipeSpec,
    CommandSpec,
    CheckSpec,
)
