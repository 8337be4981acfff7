"""What the parts of a run must be able to do: the contracts that `mvcore.api.build` checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvcore.dense_grid import DenseGrid
from mvcore.types import Features, ViewBatch


class Backbone(nn.Module, ABC):
    """Features from images, texts or embeddings: an unmodified library model behind one interface.

    Attributes:
        dims: width of each feature that it can give, as `{"view": 512, "text": 512}`.
        provides: the features that it can give.
        image_size: side in pixels of the square images that it wants, or None where any size will do.
        any_size: whether it also takes whole images of another size, square or not.
        library: whose model it is: `open_clip`, `timm`, ...; `mvcore export --to` names the same.
        origin: `{"id": ...}` and the options that it was made with; set by whoever makes it.
        embeddings: the tag of stored vectors that may stand for this model's own, where it is asked to use them.
        untouched_key: what those vectors must have been made with, as `mvcore.api.model_key` gives it.
    """

    dims: Mapping[str, int]
    provides: frozenset[str]
    image_size: int | None
    any_size: bool = False
    library: str
    origin: Mapping[str, Any] = MappingProxyType({})
    embeddings: str | None = None
    untouched_key: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The library's own module."""

    @abstractmethod
    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        """The features `keys` of a batch on the model's device; images come as uint8 and are normalised here."""

    @abstractmethod
    def set_trainable(self, mode: str) -> None:
        """`none`, `all` or `last:N` (the last N blocks of the vision tower and what follows them).

        Raises:
            ConfigError: another mode, or more blocks than there are.
        """

    def preprocessing(self) -> Mapping[str, Any]:
        """What it does to images before its first layer, as plain values: `mean`, `std`."""
        return {}

    def connect(self, sources: Mapping[str, Any]) -> None:
        """Called when a run's or an evaluation's sources are open and the model is made.

        Raises:
            MvcoreError: stored vectors that it shall use do not fit it.
        """

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        """Where the cells of `dense` lie in images of a size that it takes.

        Args:
            width, height: of the images as they come in a batch, in pixels.

        Raises:
            ConfigError: such images are not taken, there is no map, or the places of its cells are not known.
        """
        from mvcore.errors import ConfigError

        raise ConfigError(f"{type(self).__name__}: the places of the cells of its map are not known")

    def dense_at(self, **changes: Any) -> AbstractContextManager[None]:
        """Other settings of the map for a while: what is named changes inside the context and is restored after it.

        The weights and the library's module are not touched. A backbone says which settings it has.

        Raises:
            ConfigError: a setting that it has not, or a value that it cannot have.
        """
        from mvcore.errors import ConfigError

        raise ConfigError(
            f"{type(self).__name__}: its map has no settings that could be changed ({', '.join(changes)})"
        )

    def add_branch(
        self,
        key: str,
        first_block: int,
        run: Callable[[Any, Tensor, ViewBatch], Tensor],
        known: Callable[[ViewBatch], Tensor | None] | None = None,
    ) -> None:
        """Adds a feature `key`, as wide as `view`, by another way through the vision blocks; the prefix is shared.

        Args:
            key: the feature's name.
            first_block: the block from which on the ways part, 0 to the number of blocks.
            run: called with the tower's parts (`mvcore.encoders.stages.Stages`), the tokens (N, L, C) before that block
                and the batch; gives the feature.
            known: gives those tokens where they need not be computed, as from a cache, or None.

        Raises:
            ConfigError: no such block, or this model's blocks cannot be branched.
            PluginError: a tower, or attention in it, of a class that is not known.
        """
        from mvcore.errors import ConfigError

        raise ConfigError(f"{type(self).__name__}: no feature {key!r} can be branched off this model's vision tower")

    def add_preprocessing(self, run: Callable[[Tensor], Tensor]) -> None:
        """Adds a step between the images, normalised, and the model's first layer; steps run in the order of adding.

        Args:
            run: (N, 3, H, W) floating -> the same shape.

        Raises:
            ConfigError: this model reads no images.
        """
        from mvcore.errors import ConfigError

        raise ConfigError(f"{type(self).__name__}: it reads no images that could be preprocessed")

    def weight_name(self, parameter: nn.Parameter) -> str:
        """The library's own name of one of the model's weights, whatever is parametrized over it."""
        for name, candidate in self.model.named_parameters():
            if candidate is parameter:
                return library_key(name)
        raise KeyError("the parameter is not one of this model's")


def library_key(name: str) -> str:
    """A parameter's name without what torch's parametrization put into it: `a.parametrizations.w.original` is `a.w`."""
    return name.replace("parametrizations.", "").removesuffix(".original")


class Adapter(nn.Module):
    """Changes a backbone in place (`attach`), its features (`forward`), or both.

    The checkpoint holds what `trained_state` gives, under `adapters/<name>/`.
    """

    def attach(self, backbone: Backbone) -> None:
        """Called once before any `forward`, in the order of the adapters; makes what depends on `backbone.dims`."""

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """Exactly the features that the adapter provides."""
        raise NotImplementedError(f"{type(self).__name__} provides no feature")

    def set_strength(self, strength: float) -> None:
        """Scales what was learnt: 0 gives the untouched model, 1 the trained one.

        Raises:
            ConfigError: the adapter cannot be scaled.
        """
        from mvcore.errors import ConfigError

        raise ConfigError(f"{type(self).__name__} cannot be scaled; load the model with strength 1")

    def merge(self) -> bool:
        """Folds the adapter into the library's own weights; False where it cannot and is exported beside them.

        One that can in part does so, gives False, and has the rest alone in `trained_state` from then on; its
        `load_trained_state` takes that rest, since an adapter made anew is loaded with it.
        """
        return False

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by the stable names under which checkpoints hold it."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """The values of `trained_parameters`."""
        return {name: value.detach() for name, value in self.trained_parameters().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores `trained_state`, strictly.

        Raises:
            WeightsError: a missing or unexpected key, or a wrong shape.
        """
        copy_strictly(state, self.trained_parameters(), type(self).__name__)


def copy_strictly(state: Mapping[str, Tensor], into: Mapping[str, Tensor], owner: str) -> None:
    """Copies tensors by name, all or none.

    Raises:
        WeightsError: a missing or unexpected key, or a wrong shape.
    """
    from mvcore.errors import WeightsError

    missing, unexpected = sorted(into.keys() - state.keys()), sorted(state.keys() - into.keys())
    wrong = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(into[k].shape)}"
        for k in into
        if k in state and state[k].shape != into[k].shape
    ]
    if missing or unexpected or wrong:
        parts = [
            f"{what} {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("shape of", wrong))
            if keys
        ]
        raise WeightsError(f"weights do not fit {owner}: {'; '.join(parts)}")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(state[name])


@runtime_checkable
class IndexedDataset(Protocol):
    """Objects with views, by index. Core draws, collates, shards and seeds.

    Attributes:
        provides: the batch fields that its batches hold.
        image_size: side of its square images in pixels.
        store_key: names the store behind it; datasets with equal keys share object and view ids.
        n_store_objects, n_store_views: how many ids that store has.
    """

    provides: frozenset[str]
    image_size: int
    store_key: str
    n_store_objects: int
    n_store_views: int

    def __len__(self) -> int: ...

    def views_of(self, i: int) -> Sequence[int]:
        """The store's ids of object `i`'s views that this dataset may give."""
        ...

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        """One object's batch with the given views (store ids, in that order).

        `rng` drives the training transforms; None means the evaluation transforms, which draw nothing. `object_ids` and
        `view_ids` are the store's own.
        """
        ...

    def object_name(self, i: int) -> str:
        """The object's name in its store."""
        ...

    def category(self, i: int) -> str | None:
        """The object's category word."""
        ...


StoredTexts = Callable[[Sequence[str]], tuple[list[int], Tensor]]
"""Texts -> the places of those that are stored, and their (K, D) float32 vectors."""


@runtime_checkable
class StoredEmbeddings(Protocol):
    """What a dataset may offer beside `IndexedDataset`: vectors computed before, by the tag that they stand under.

    The methods with `model` raise a DataError, which says what differs, unless the vectors were made with the model of
    that `mvcore.api.model_key` (and, where images take part, with the transforms that the dataset evaluates with). An
    empty `model` takes vectors of any.
    """

    def stored_embeddings(self, tag: str) -> Mapping[str, int]:
        """Widths of what is stored under a tag, `image` and `text`; empty where nothing is.

        Raises:
            DataError: what is there is damaged or was made for other data.
        """
        ...

    def stored_views(self, tag: str, model: Mapping[str, Any]) -> IndexedDataset:
        """The same objects and views, without images, with `embeddings["<tag>/image"]`."""
        ...

    def stored_texts(self, tag: str, model: Mapping[str, Any]) -> StoredTexts:
        """The stored vectors of captions."""
        ...

    def check_stored(self, tag: str, model: Mapping[str, Any]) -> None:
        """Refuses vectors of another model, whatever the transforms."""
        ...


@runtime_checkable
class DescribedDataset(Protocol):
    """A dataset that says what it gives, for model cards; any dataset may have this method."""

    def describe(self) -> Mapping[str, Any]:
        """Plain values for JSON: `name` (no path of this machine), the numbers of `objects` and `views`, and numbers of
        objects by name in `licences` (SPDX names), `sources` and `creators`, where "" stands for an unknown one.
        """
        ...


@runtime_checkable
class TraceableDataset(Protocol):
    """What an indexed dataset may offer beside, for indexes of it: where an object comes from, and what is stored."""

    def licence(self, i: int) -> str | None:
        """The object's licence, as an SPDX name."""
        ...

    def content_digest(self) -> str:
        """A digest of all that the store holds; another one means that something there changed."""
        ...


@runtime_checkable
class GivesCameras(Protocol):
    """What an indexed dataset may offer beside: the cameras of an object's views, without loading their images."""

    def cameras_of(self, i: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Intrinsics (V, 3, 3) and world-to-camera (V, 4, 4), OpenCV axes, of the views `views_of(i)`, in their order.

        Both are NaN for a view without a camera.
        """
        ...


@runtime_checkable
class GivesCovisibility(Protocol):
    """What an indexed dataset may offer beside: how much of an object two views share."""

    def covisibility(self, i: int, views: Sequence[int]) -> NDArray[np.floating]:
        """(V, V) share, 0 to 1, of the foreground in the row's view that the column's view sees too.

        `views` are store ids of object `i`. Rows and columns of a view without camera or depth are 0.
        """
        ...


@runtime_checkable
class StreamDataset(Protocol):
    """One-object batches in an order of its own, read by one process; it can be resumed."""

    provides: frozenset[str]
    image_size: int

    def __iter__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Embedded:
    """One pass over a source: features of each view by key, with evaluation transforms, on the CPU in float32.

    Args:
        features: (N, D) by key, views of an object adjacent.
        object_of_view: (N,) int64, index into `object_ids`.
        object_ids: (O,) int64, global in the run's store.
        view_ids: (N,) int64, global in the run's store.
    """

    features: Mapping[str, Tensor]
    object_of_view: Tensor
    object_ids: Tensor
    view_ids: Tensor


class RunHandle(Protocol):
    """What a trainer may ask of its run (given to its `bind(run)` before training starts).

    Attributes:
        seed: the run's seed.
        output: the run's folder.
        sources: the opened sources by name.
        n_object_ids, n_view_ids: how many global ids the run's stores have together.
    """

    seed: int
    output: Path
    sources: Mapping[str, IndexedDataset]
    n_object_ids: int
    n_view_ids: int

    @property
    def device(self) -> torch.device: ...

    def sources_of(self, trainer: object) -> tuple[str, ...]:
        """The names of the sources that the trainer works on."""
        ...

    def prefer(self, view_ids: Tensor) -> None:
        """Names the views (the run's ids) from which sources with an `outlier_share` draw it from the next epoch on.

        They take the place of those named before. Named in `on_train_epoch_start`, they count for that very epoch.
        """
        ...

    def embed(self, source: str, keys: frozenset[str]) -> Embedded:
        """One pass over each view of a source in eval mode without gradient; modes and random states are restored."""
        ...

    def log(self, values: Mapping[str, float]) -> None:
        """Adds to the metrics of the current step."""
        ...
