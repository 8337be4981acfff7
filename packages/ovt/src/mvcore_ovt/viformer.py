"""VIFormer: the small transformer that corrects an image embedding, and how its output is blended in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from mvcore.api import Adapter, Backbone, ConfigError, Features, ViewBatch, WeightsError
from torch import Tensor, nn
from torch.nn import functional as F

BlendRule = Literal["paper", "released"]
InitRule = Literal["released", "identity"]


class VIFormer(nn.Module):
    """The released VIFormer: a post-norm transformer encoder over a sequence of one image embedding.

    Over one token the softmax is 1 whatever queries and keys are, so attention is the value and output projections
    alone, and that is what is computed; `heads` changes nothing. Parameters keep the released layout, queries and keys
    included, so that the authors' weights load; those rows get a gradient of exactly 0.

    Args:
        dim: width D of the embedding.
        layers: number of encoder layers.
        heads: attention heads; must divide `dim`.
        feedforward: width of the layers' feed-forward part.
        dropout: in [0, 1). The authors build with 0.1 but train in eval mode, so 0 is what their runs had.

    Raises:
        ValueError: heads that do not divide `dim`.
    """

    def __init__(
        self, dim: int, layers: int = 2, heads: int = 4, feedforward: int = 2048, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide the width {dim}, got {heads}")
        self.dim = dim
        layer = nn.TransformerEncoderLayer(dim, heads, feedforward, dropout)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).layers

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, D) to (N, D); each row by itself.

        Raises:
            ValueError: another shape.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(f"embeddings must be (N, {self.dim}), not {tuple(embeddings.shape)}")
        for layer in self.layers:
            embeddings = _encode_single(layer, embeddings)
        return embeddings

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads the authors' weights: keys `transformer_encoder.layers.*`, also inside their whole wrapped model.

        Raises:
            WeightsError: a key is missing, unexpected or of another shape.
        """
        marker = "transformer_encoder."
        state = {key.split(marker, 1)[1]: value for key, value in state_dict.items() if marker in key}
        if not state:
            raise WeightsError(f"no VIFormer in these weights: no key holds {marker!r}")
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError("weights do not fit VIFormer: " + " ".join(str(error).split())) from error

    def silence(self) -> None:
        """Makes the output 0: the last layer norm's gain and offset become 0, and learn from there."""
        last = self.layers[-1]
        assert isinstance(last, nn.TransformerEncoderLayer)
        nn.init.zeros_(last.norm2.weight)
        nn.init.zeros_(last.norm2.bias)


def _encode_single(layer: nn.Module, x: Tensor) -> Tensor:
    """What a `TransformerEncoderLayer` gives for sequences of length 1."""
    assert isinstance(layer, nn.TransformerEncoderLayer)
    attention = layer.self_attn
    width = x.shape[-1]
    value = F.linear(x, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    x = layer.norm1(x + layer.dropout1(attention.out_proj(value)))
    hidden = layer.dropout(F.relu(layer.linear1(x)))
    return layer.norm2(x + layer.dropout2(layer.linear2(hidden)))


def blend(z: Tensor, f: Tensor, *, alpha: float = 0.1, rule: BlendRule = "paper") -> Tensor:
    """The tuned embedding, normalised.

    `paper`: alpha f + (1 - alpha) z (eq. of VIFormer); `released`: z + alpha f (the authors' code).

    Args:
        z: (N, D) embeddings as the encoder gives them: not normalised.
        f: (N, D) VIFormer's output.
        alpha: weight of `f`.
        rule: which of the two.

    Returns:
        (N, D) of norm 1; halves become float32.

    Raises:
        ValueError: another rule, or shapes that differ.
    """
    if rule not in get_args(BlendRule):
        raise ValueError(f"rule must be one of {', '.join(get_args(BlendRule))}, not {rule!r}")
    if z.ndim != 2 or z.shape != f.shape:
        raise ValueError(f"z and f must both be (N, D), not {tuple(z.shape)} and {tuple(f.shape)}")
    dtype = torch.promote_types(torch.promote_types(z.dtype, f.dtype), torch.float32)
    z, f = z.to(dtype), f.to(dtype)
    kept = 1 - alpha if rule == "paper" else 1
    return F.normalize(alpha * f + kept * z, dim=-1)


class ViformerAdapter(Adapter):
    """`ovt.viformer`: replaces `view` by its blend with VIFormer's output, normalised.

    Args:
        alpha, blend: see `blend`.
        layers, heads, feedforward, dropout: see `VIFormer`.
        init: `released` starts from random weights, which already turn the embedding; `identity` starts from an output
            of 0, so that the first step sees the untouched direction.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        blend: BlendRule = "paper",
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 2048,
        dropout: float = 0.0,
        init: InitRule = "released",
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.rule: BlendRule = blend
        self.init: InitRule = init
        self.strength = 1.0
        self._shape = {"layers": layers, "heads": heads, "feedforward": feedforward}
        self._dropout = dropout
        self.viformer: VIFormer | None = None

    def attach(self, backbone: Backbone) -> None:
        """Makes the VIFormer in the width of the backbone's `view`.

        Raises:
            ConfigError: heads that do not divide that width.
        """
        try:
            self.viformer = VIFormer(backbone.dims["view"], **self._shape, dropout=self._dropout)
        except ValueError as error:
            raise ConfigError(f"ovt.viformer: {error}") from error
        if self.init == "identity":
            self.viformer.silence()

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`view` (N, D), normalised; at strength 0 exactly what came in."""
        assert self.viformer is not None, "attach comes before forward"
        if self.strength == 0:
            return {"view": features.view}
        alpha = self.strength * self.alpha
        return {"view": blend(features.view, self.viformer(features.view), alpha=alpha, rule=self.rule)}

    def set_strength(self, strength: float) -> None:
        """Scales `alpha`: 0 gives the encoder's own embedding."""
        self.strength = strength
