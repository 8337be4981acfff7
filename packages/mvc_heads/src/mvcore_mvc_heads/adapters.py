"""The heads as adapters: each replaces `view`, whether it comes from an encoder or from stored vectors."""

from __future__ import annotations

import torch
from mvcore.api import Adapter, Backbone, ConfigError, Features, ViewBatch
from torch import Tensor, nn
from torch.nn import functional as F

from mvcore_mvc_heads.heads import MLPHead, Variant, ViewAutoencoder


class MLPAdapter(Adapter):
    """`mvc_heads.mlp`: replaces `view` by the head's output.

    Args:
        hidden, hidden_layers: see `MLPHead`.
    """

    def __init__(self, hidden: int | None = None, hidden_layers: int = 2) -> None:
        super().__init__()
        self._shape = (hidden, hidden_layers)
        self.strength = 1.0
        self.head: MLPHead | None = None

    def attach(self, backbone: Backbone) -> None:
        """Makes the head in the width of the backbone's `view`."""
        self.head = MLPHead(backbone.dims["view"], *self._shape)

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`view` (N, D), not normalised."""
        assert self.head is not None, "attach comes before forward"
        own = features.view
        return {"view": _blended(own, own, self.head(own), self.strength)}

    def set_strength(self, strength: float) -> None:
        """Goes straight from the encoder's own vectors (0) to the head's (1)."""
        self.strength = strength


class AutoencoderAdapter(Adapter):
    """`mvc_heads.autoencoder`: replaces `view` by what the branch without viewpoint gives back of it.

    Beside it stand `mvc_heads.original` (N, D), what went in, `mvc_heads.decoded` (N, D), both branches together, and
    `mvc_heads.invariant` (N, E), the encoding.

    Args:
        bottleneck, variant, branch_dropout, drop_in_eval: see `ViewAutoencoder`.
        unit_input: what goes in is brought to length 1.
    """

    def __init__(
        self,
        bottleneck: int = 128,
        variant: Variant = "linear",
        branch_dropout: float = 0.0,
        drop_in_eval: bool = False,
        unit_input: bool = False,
    ) -> None:
        super().__init__()
        self._shape: tuple[int, Variant] = (bottleneck, variant)
        self._dropout = (branch_dropout, drop_in_eval)
        self.unit_input = unit_input
        self.strength = 1.0
        self.autoencoder: ViewAutoencoder | None = None

    def attach(self, backbone: Backbone) -> None:
        """Makes the autoencoder in the width of the backbone's `view`.

        Raises:
            ConfigError: a width that the authors' network cannot have.
        """
        dropout, in_eval = self._dropout
        try:
            self.autoencoder = ViewAutoencoder(
                backbone.dims["view"], *self._shape, branch_dropout=dropout, drop_in_eval=in_eval
            )
        except ValueError as error:
            raise ConfigError(f"mvc_heads.autoencoder: {error}") from error

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`view` and the three features beside it."""
        assert self.autoencoder is not None, "attach comes before forward"
        original = F.normalize(features.view, dim=-1) if self.unit_input else features.view
        found = self.autoencoder(original)
        return {
            "view": _blended(features.view, original, found.decoded_invariant, self.strength),
            "mvc_heads.original": original,
            "mvc_heads.decoded": found.decoded,
            "mvc_heads.invariant": found.invariant,
        }

    def set_strength(self, strength: float) -> None:
        """Goes straight from the encoder's own vectors (0) to the decoded ones (1)."""
        self.strength = strength


class IdentityAdapter(Adapter):
    """`mvc_heads.identity`: leaves `view` as it is, so that a run without a head can stand beside those with one.

    A run needs something that trains: a parameter that no value depends on, whose gradient is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`view`, bit by bit what came in."""
        return {"view": features.view + self.nothing.flatten()[:0].sum()}

    def set_strength(self, strength: float) -> None:
        """Nothing to do: no vector depends on it."""


def _blended(untouched: Tensor, before: Tensor, after: Tensor, strength: float) -> Tensor:
    """From what went into the head to what came out; at 0 exactly the encoder's own."""
    if strength in (0, 1):
        return after if strength else untouched
    return before + strength * (after - before)
