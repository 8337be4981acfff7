"""Embeddings of all views of a run's objects, and a rolling bank of them that the training steps write themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

_BLOCK = 1 << 14


@dataclass(frozen=True)
class EmbeddedViews:
    """Every view of the objects that are mined, once.

    Args:
        features: (N, D).
        object_of_view: (N,) int64, index into `object_ids`.
        object_ids: (O,) int64, global.
        view_ids: (N,) int64, global.
    """

    features: Tensor
    object_of_view: Tensor
    object_ids: Tensor
    view_ids: Tensor

    @staticmethod
    def of(embedded: Any) -> EmbeddedViews:
        """From what a run's `embed` gave."""
        return EmbeddedViews(embedded.features["view"], embedded.object_of_view, embedded.object_ids, embedded.view_ids)


def merged(sources: Sequence[EmbeddedViews]) -> EmbeddedViews:
    """The views of all sources together: an object or view that several of them hold is one object or view."""
    if len(sources) == 1:
        return sources[0]
    object_ids, object_rows = torch.cat([source.object_ids for source in sources]).unique(return_inverse=True)
    view_ids, view_rows = torch.cat([source.view_ids for source in sources]).unique(return_inverse=True)
    features = sources[0].features.new_empty(len(view_ids), sources[0].features.shape[1])
    object_of_view = torch.empty_like(view_ids)
    first_object = first_view = 0
    for source in sources:
        rows = view_rows[first_view : first_view + len(source.view_ids)]
        features[rows] = source.features
        object_of_view[rows] = object_rows[first_object + source.object_of_view]
        first_object += len(source.object_ids)
        first_view += len(source.view_ids)
    return EmbeddedViews(features, object_of_view, object_ids, view_ids)


class FeatureBank:
    """The latest direction of each view, in half precision.

    Args:
        views: features (N + 1, D) float16, whose last row takes what is no view of the bank.
        n_view_ids: how many view ids the run has.
    """

    def __init__(self, views: EmbeddedViews, n_view_ids: int) -> None:
        self._held = views
        self._features = views.features
        self._row_of_view = torch.full((n_view_ids + 1,), len(views.view_ids), dtype=torch.int64)
        self._row_of_view[views.view_ids] = torch.arange(len(views.view_ids))

    @classmethod
    def filled(cls, views: EmbeddedViews, n_view_ids: int) -> FeatureBank:
        """A bank that starts with the given embeddings."""
        count, width = views.features.shape
        features = torch.zeros(count + 1, width, dtype=torch.float16)
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            features[start:stop] = normalize(views.features[start:stop], dim=-1)
        return cls(EmbeddedViews(features, views.object_of_view, views.object_ids, views.view_ids), n_view_ids)

    @property
    def views(self) -> EmbeddedViews:
        """What the bank holds now, on the device that it lives on."""
        features, held = self._features[:-1], self._held
        return EmbeddedViews(features, held.object_of_view.to(features.device), held.object_ids, held.view_ids)

    def write(self, view_ids: Tensor, features: Tensor) -> None:
        """Overwrites the views of a step, on its device: nothing waits for it."""
        if self._features.device != features.device:
            self._features = self._features.to(features.device)
            self._row_of_view = self._row_of_view.to(features.device)
        # An id of -1 is the last entry, which points at the row that is no view's.
        self._features[self._row_of_view[view_ids]] = normalize(features.detach().float(), dim=-1).half()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        held = self._held
        return {
            "features": self._features.cpu(),
            "object_of_view": held.object_of_view,
            "object_ids": held.object_ids,
            "view_ids": held.view_ids,
            "n_view_ids": len(self._row_of_view) - 1,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> FeatureBank:
        """The bank that `state_dict` described."""
        values = dict(state)
        n_view_ids = values.pop("n_view_ids")
        return cls(EmbeddedViews(**values), n_view_ids)
