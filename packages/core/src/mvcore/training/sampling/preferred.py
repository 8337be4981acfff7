"""Views that a trainer prefers, as samplers in this process and in workers draw from them.

What a trainer publishes comes into effect when the loader begins its next pass (a run's epoch), and stays so until the
pass ends, however far the workers fetch ahead; both what is published and what is in effect are saved with the loader.
So neither workers nor a resume change what is drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvcore.training.sampling.draws import Integers


class PreferredViews:
    """The views, by their ids in the run, that a trainer published last and those that are in effect."""

    def __init__(self) -> None:
        self._published: Tensor | None = None
        self.in_effect: Tensor | None = None

    def publish(self, view_ids: Tensor) -> None:
        """Lets the next pass prefer these views; ids that are not known (-1) are passed over."""
        self._published = view_ids[view_ids >= 0].cpu()

    def begin_pass(self) -> None:
        """Brings into effect what was published."""
        self.in_effect = self._published

    def state_dict(self) -> dict[str, Any]:
        return {"published": self._published, "in_effect": self.in_effect}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._published, self.in_effect = state["published"], state["in_effect"]


class PreferredTable:
    """One source's preferred views, in memory that its workers share.

    Args:
        views: (V,) the store's ids of the source's views.
        n_store_views: how many ids the store has.
    """

    def __init__(self, views: Integers, n_store_views: int) -> None:
        self._views = views
        self._n_store_views = n_store_views
        self._positions = torch.zeros(len(views), dtype=torch.int32).share_memory_()
        self._count = torch.zeros((), dtype=torch.int64).share_memory_()

    def set(self, store_ids: Integers) -> None:
        """Prefers these views, as far as the source has them; called while no worker draws."""
        known = np.zeros(self._n_store_views, np.bool_)
        known[store_ids[(store_ids >= 0) & (store_ids < self._n_store_views)]] = True
        positions = np.flatnonzero(known[self._views])
        self._positions[: len(positions)] = torch.from_numpy(positions.astype(np.int32))
        self._count.fill_(len(positions))

    def draw(self, number: int, taken: Integers, rng: np.random.Generator) -> Integers:
        """`number` positions among the source's views, none of those taken: preferred ones, uniformly, as many as there
        are, and for the rest any others.
        """
        preferred = self._positions.numpy()[: int(self._count)]
        found = preferred[_untaken(preferred, number, taken, rng)].astype(np.int64)
        missing = number - len(found)
        if missing:
            found = np.concatenate(
                [found, _untaken(np.arange(len(self._views)), missing, np.concatenate([taken, found]), rng)]
            )
        return found


def _untaken(candidates: Integers, number: int, taken: Integers, rng: np.random.Generator) -> Integers:
    """Places of up to `number` candidates that are not taken, a uniform draw without replacement."""
    places = rng.choice(len(candidates), min(len(candidates), number + len(taken)), replace=False)
    return places[~np.isin(candidates[places], taken)][:number]
