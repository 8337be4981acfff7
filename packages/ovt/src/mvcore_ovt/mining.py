"""The outer maximisation as a trainer: when anchors and outliers are found, and how a step reads them."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from mvcore.api import Features, PluginError, RunHandle, ViewBatch
from torch import Tensor

from mvcore_ovt.anchors import AnchorRule, anchors_of, outlier_views
from mvcore_ovt.bank import EmbeddedViews, FeatureBank, merged

VIEW = frozenset({"view"})


class OutlierMining(pl.Callback):
    """`ovt.outlier_mining`: publishes each object's anchor and which views are its outliers.

    Anchors and outliers are found from the directions of the views under the evaluation transforms and stay fixed until
    the next refresh. An object with a single view has an anchor and no outlier. A run that is resumed restores what was
    mined and mines again only when the next refresh is due.

    Args:
        k: outlier views of each object.
        neighbours: see `viewpoint_anchors`.
        rule: see `viewpoint_anchors`.
        refresh: `epoch` embeds every view before each epoch; a number embeds before every so many steps; `bank` embeds
            once at the start, lets each training step overwrite the embeddings of its views, and finds anchors and
            outliers from these before each epoch.
    """

    def __init__(
        self,
        k: int = 5,
        neighbours: int = 5,
        rule: AnchorRule = "inverse_distance",
        refresh: Literal["epoch", "bank"] | int = "epoch",
    ) -> None:
        super().__init__()
        self.k = k
        self.neighbours = neighbours
        self.rule: AnchorRule = rule
        self.refresh = refresh
        self.times_mined = 0
        self._run: RunHandle | None = None
        self._mined_at: int | None = None
        self._anchors: Tensor | None = None
        self._outliers: Tensor | None = None
        self._bank: FeatureBank | None = None

    def bind(self, run: RunHandle) -> None:
        """Gives the trainer its run, before training starts."""
        self._run = run

    # -- when ----------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning also comes here when it resumes within an epoch: that epoch was mined already.
        if not isinstance(self.refresh, int) and self._mined_at != trainer.current_epoch:
            self.mine(at=trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(self.refresh, int) and (
            self._mined_at is None or trainer.global_step - self._mined_at >= self.refresh
        ):
            self.mine(at=trainer.global_step)

    # -- what ----------------------------------------------------------------------------------------------------------

    def mine(self, at: int = 0) -> None:
        """Finds anchors and outliers now; `at` is the epoch or step that this counts for."""
        run = self._run
        if run is None:
            raise PluginError("ovt.outlier_mining has no run yet; call bind(run) before training")
        if self._bank is not None:
            self._publish(run, self._bank.views)
        else:
            views = merged([EmbeddedViews.of(run.embed(source, VIEW)) for source in run.sources_of(self)])
            self._publish(run, views)
            if self.refresh == "bank":
                self._bank = FeatureBank.filled(views, run.n_view_ids)
        self._mined_at = at
        self.times_mined += 1

    def _publish(self, run: RunHandle, views: EmbeddedViews) -> None:
        """Writes the tables; the last row of each stands for whatever has no id."""
        found = anchors_of(
            views.features,
            views.object_of_view,
            rule=self.rule,
            neighbours=self.neighbours,
            unit=True,
            device=run.device,
        )
        chosen = outlier_views(views.features, views.object_of_view, found.to(views.features.device), self.k)
        owners = views.object_of_view
        chosen &= (torch.bincount(owners) > 1)[owners]
        self._anchors = torch.zeros(run.n_object_ids + 1, found.shape[1], device=run.device)
        self._anchors[views.object_ids.to(run.device)] = found
        self._outliers = torch.zeros(run.n_view_ids + 1, dtype=torch.bool, device=run.device)
        self._outliers[views.view_ids.to(run.device)] = chosen.to(run.device)
        run.prefer(views.view_ids[chosen.to(views.view_ids.device)])

    def state(self, batch: ViewBatch) -> dict[str, Tensor]:
        """`ovt.anchors` (B, D) and `ovt.outliers` (N,) bool of a batch; zero and False where nothing was mined."""
        if self._anchors is None or self._outliers is None:
            self.mine()
        assert self._anchors is not None
        assert self._outliers is not None
        if self._anchors.device != batch.device:
            self._anchors, self._outliers = self._anchors.to(batch.device), self._outliers.to(batch.device)
        # An id of -1 is the last row.
        return {"ovt.anchors": self._anchors[batch.object_ids], "ovt.outliers": self._outliers[batch.view_ids]}

    def observe(self, batch: ViewBatch, features: Features) -> None:
        """Takes a step's embeddings into the bank."""
        if self._bank is not None:
            self._bank.write(batch.view_ids, features.view)

    # -- resuming ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self._anchors is None or self._outliers is None:
            return {}
        saved: dict[str, Any] = {
            "anchors": self._anchors.cpu(),
            "outliers": self._outliers.cpu(),
            "mined_at": self._mined_at,
            "times_mined": self.times_mined,
        }
        return saved if self._bank is None else {**saved, "bank": self._bank.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict:
            return
        self._anchors, self._outliers = state_dict["anchors"], state_dict["outliers"]
        self._mined_at, self.times_mined = state_dict["mined_at"], state_dict["times_mined"]
        if "bank" in state_dict:
            self._bank = FeatureBank.restored(state_dict["bank"])
