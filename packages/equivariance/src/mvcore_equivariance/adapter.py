"""`equivariance.dense`: the method's tuning of any backbone that gives a dense map."""

from __future__ import annotations

from collections.abc import Mapping

from mvcore.api import Adapter, Backbone, ConfigError, Features, ViewBatch
from torch import Tensor, nn

from mvcore_equivariance.attention import AttentionUpdates
from mvcore_equivariance.heads import Head, apply_head, fold_strength, make_head

_HEAD = "head."


class DenseAdapter(Adapter):
    """LoRA on q and v of the last vision blocks, and a head on the dense map, which replaces it for all later readers.

    Args:
        rank, last_blocks, head: see `DenseAdapterOptions`.
    """

    def __init__(self, rank: int = 4, last_blocks: int = 4, head: Head = "conv") -> None:
        super().__init__()
        self.rank = rank
        self.last_blocks = last_blocks
        self.kind: Head = head
        self.strength = 1.0

    def attach(self, backbone: Backbone) -> None:
        """Puts an update on each weight and makes the head; the weights themselves keep their `requires_grad`.

        Raises:
            ConfigError: a backbone without a dense map or attention that is known, fewer blocks than asked for, or a
                rank that is larger than a weight.
        """
        if "dense" not in backbone.dims:
            raise ConfigError(f"equivariance.dense: {type(backbone).__name__} gives no dense map")
        sites = getattr(backbone, "attention_sites", None)
        if sites is None:
            raise ConfigError(f"equivariance.dense: {type(backbone).__name__} does not tell where its attention is")
        try:
            self.updates = AttentionUpdates(
                sites(), rank=self.rank, last_blocks=self.last_blocks, name_of=backbone.weight_name
            )
        except ValueError as error:
            raise ConfigError(f"equivariance.dense: {error}") from error
        self.head = make_head(self.kind, backbone.dims["dense"])

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        return {"dense": apply_head(self.head, features.dense, self.strength)}

    def set_strength(self, strength: float) -> None:
        """Scales the updates and the head: 0 gives the backbone's own map bit for bit."""
        self.strength = float(strength)
        self.updates.set_strength(strength)

    def merge(self) -> bool:
        """Folds the updates into the library's weights, at their present strength; a head cannot be, and is exported
        beside them.
        """
        self.updates.merge()
        fold_strength(self.head, self.strength)
        self.strength = 1.0
        return self.kind == "none"

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The factors by the library's weight, as `<weight>.q.lora_a`, and the head's as `head.weight`."""
        own = {f"{_HEAD}{name}": value for name, value in self.head.named_parameters()}
        return {**self.updates.factors(), **own}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores `trained_state`, strictly; a state of the head alone is that of an export, whose weights hold the
        updates already.

        Raises:
            WeightsError: a missing or unexpected key, or a wrong shape.
        """
        if state and all(name.startswith(_HEAD) for name in state):
            self.updates.merge()
        super().load_trained_state(state)
