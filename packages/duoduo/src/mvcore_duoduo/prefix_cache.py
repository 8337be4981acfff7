"""The tokens before the first block that crosses views, computed once for each view and read by every step.

Below that block a view goes through by itself; where nothing there trains and nothing is augmented, its tokens are the
same whenever it is drawn, and whatever it is drawn with.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from mvcore.api import ConfigError, RunHandle, ViewBatch
from torch import Tensor

from mvcore_duoduo.attention import PREFIX


class PrefixCache(pl.Callback):
    """`duoduo.prefix_cache`: publishes `duoduo.prefix`, (N, L, C), which `duoduo.cross_view` reads instead of images.

    Args:
        dtype: how tokens are kept: `float32`, or `float16` for half the memory.
    """

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self._run: RunHandle | None = None
        self._tokens: Tensor | None = None
        self._row: Tensor | None = None

    def bind(self, run: RunHandle) -> None:
        """Gives the trainer its run.

        Raises:
            ConfigError: a source that it does not work on, or one that augments its images.
        """
        if missing := sorted(set(run.sources) - set(run.sources_of(self))):
            raise ConfigError(f"duoduo.prefix_cache must work on every source of the run, and leaves out {missing}")
        for name, source in run.sources.items():
            if getattr(getattr(source, "options", None), "augment", ()):
                raise ConfigError(
                    f"duoduo.prefix_cache: data.{name} augments its images, so a view's tokens differ from step to "
                    "step; drop `augment`, or the cache"
                )
        self._run = run

    def state(self, batch: ViewBatch) -> dict[str, Tensor]:
        """`duoduo.prefix` (N, L, C) of a batch's views."""
        if self._tokens is None or self._row is None:
            self._tokens, self._row = self._filled()
        rows = self._tokens[self._row[batch.view_ids.to(self._row.device)].to(self._tokens.device)]
        return {PREFIX: rows.to(batch.device, torch.float32)}

    def _filled(self) -> tuple[Tensor, Tensor]:
        """The tokens of every view of every source, and the row of each view id among them."""
        run = self._run
        assert run is not None
        parts: list[Tensor] = []
        row = torch.full((run.n_view_ids,), -1, dtype=torch.int64)
        count = 0
        for source in run.sources_of(self):
            found = run.embed(source, frozenset({PREFIX}))
            parts.append(found.features[PREFIX].to(self.dtype))
            row[found.view_ids] = torch.arange(count, count + len(found.view_ids))
            count += len(found.view_ids)
        return torch.cat(parts).to(run.device), row.to(run.device)

    def state_dict(self) -> dict[str, Any]:
        # Made again in one pass from weights that do not change, and far larger than a checkpoint should be.
        return {}
