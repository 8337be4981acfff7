"""The heads: a small perceptron after the encoder, and an autoencoder with a branch of its own for the viewpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from mvcore.api import WeightsError
from torch import Tensor, nn

Variant = Literal["linear", "reference"]


class Perceptron(nn.Module):
    """Linear layers with a ReLU between them, and after the last one where asked.

    Args:
        widths: of the input, of what is between, and of the output.
        relu_output: a ReLU after the last layer too.
    """

    def __init__(self, widths: Sequence[int], *, relu_output: bool = False) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.relu_output = relu_output

    def forward(self, x: Tensor) -> Tensor:
        """(..., widths[0]) to (..., widths[-1])."""
        last = len(self.linears) - 1
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if i < last or self.relu_output:
                x = torch.relu(x)
        return x


class MLPHead(nn.Module):
    """Linear layers with ReLUs between them: no residual, no norm, no activation at the end (Laugaland & Korth 2024).

    At random weights, as torch draws them, it is not the identity.

    Args:
        dim: width D of what goes in and comes out.
        hidden: width between; None = `dim`.
        hidden_layers: how many layers lie between, at least 1; the linear ones are one more.

    Raises:
        ValueError: a width or number below 1.
    """

    def __init__(self, dim: int, hidden: int | None = None, hidden_layers: int = 2) -> None:
        super().__init__()
        hidden = dim if hidden is None else hidden
        _check_positive(dim=dim, hidden=hidden, hidden_layers=hidden_layers)
        self.layers = Perceptron([dim, *[hidden] * hidden_layers, dim])

    def forward(self, embeddings: Tensor) -> Tensor:
        """(..., D) to (..., D), each row by itself."""
        return self.layers(embeddings)

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads weights of the authors' head: `model.linear0.weight` and on, also with what their trainer puts before.

        Raises:
            WeightsError: a key is missing, or a weight of another shape.
        """
        _load_released(self, {"layers": ""}, state_dict, "MLPHead")


class Decoded(NamedTuple):
    """What a `ViewAutoencoder` gives.

    Args:
        decoded: (..., D) both branches' decodings added.
        invariant: (..., E) encoding by the branch that shall not see the viewpoint.
        decoded_invariant, decoded_dependent: (..., D) each branch's decoding.
    """

    decoded: Tensor
    invariant: Tensor
    decoded_invariant: Tensor
    decoded_dependent: Tensor


class ViewAutoencoder(nn.Module):
    """Two encoders and decoders: a pair for what all views share, a pair for the viewpoint (Laugaland & Korth 2024).

    `decoded = D_vi(E_vi(x)) + D_vd(E_vd(x))`; what stands for a view afterwards is `D_vi(E_vi(x))`. Each part has three
    linear layers, whose widths go evenly from D to E or back.

    Args:
        dim: width D.
        bottleneck: width E of the encodings.
        variant: `linear` ends each part in a linear layer and takes any width. `reference` is the authors' network:
            widths rounded up to powers of two, so that D and E must be ones, and a ReLU at each part's end, so that no
            value is negative: it cannot rebuild the negative half of an embedding, and no two decodings are further
            apart than a right angle.
        branch_dropout: probability that a forward pass in training leaves the viewpoint's branch out of `decoded`; one
            draw for the whole batch.
        drop_in_eval: leaves it out in eval mode too, as the authors' code does.

    Raises:
        ValueError: a width below 1, another variant, a probability outside of 0 to 1, or widths that the authors'
            network cannot have.
    """

    def __init__(
        self,
        dim: int,
        bottleneck: int = 128,
        variant: Variant = "linear",
        *,
        branch_dropout: float = 0.0,
        drop_in_eval: bool = False,
    ) -> None:
        super().__init__()
        _check_positive(dim=dim, bottleneck=bottleneck)
        if variant not in get_args(Variant):
            raise ValueError(f"variant must be {' or '.join(map(repr, get_args(Variant)))}, not {variant!r}")
        if not 0 <= branch_dropout <= 1:
            raise ValueError(f"branch_dropout must be in 0 to 1, not {branch_dropout}")
        down = _widths(dim, bottleneck, variant)
        reference = variant == "reference"
        self.invariant_encoder = Perceptron(down, relu_output=reference)
        self.dependent_encoder = Perceptron(down, relu_output=reference)
        self.invariant_decoder = Perceptron(_widths(bottleneck, dim, variant), relu_output=reference)
        self.dependent_decoder = Perceptron(_widths(bottleneck, dim, variant), relu_output=reference)
        self.branch_dropout = branch_dropout
        self.drop_in_eval = drop_in_eval

    def forward(self, embeddings: Tensor) -> Decoded:
        """The encodings and decodings of (..., D), each row by itself."""
        invariant = self.invariant_encoder(embeddings)
        mine = self.invariant_decoder(invariant)
        rest = self.dependent_decoder(self.dependent_encoder(embeddings))
        return Decoded(mine if self._drops() else mine + rest, invariant, mine, rest)

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads weights of the authors' network, which fit the variant `reference` of D 512 and E 128.

        Keys are `view_invariant_encoder.model.linear0.weight` and on, also with what their trainer puts before.

        Raises:
            WeightsError: a key is missing, or a weight of another shape.
        """
        parts = ("invariant_encoder", "dependent_encoder", "invariant_decoder", "dependent_decoder")
        _load_released(self, {part: f"view_{part}." for part in parts}, state_dict, "ViewAutoencoder")

    def _drops(self) -> bool:
        """One draw, on the host, so that no step waits for the device."""
        if not self.branch_dropout or not (self.training or self.drop_in_eval):
            return False
        return float(torch.rand(())) < self.branch_dropout


def _widths(first: int, last: int, variant: Variant, between: int = 2) -> list[int]:
    """Widths that go evenly from `first` to `last`.

    Raises:
        ValueError: rounding to powers of two, as the authors' code does, would change the ends.
    """
    widths = [int(first - i * (first - last) / (between + 1)) for i in range(between + 1)] + [last]
    if variant == "linear":
        return widths
    rounded = [1 << (width - 1).bit_length() for width in widths]
    if (rounded[0], rounded[-1]) != (first, last):
        bad = first if rounded[0] != first else last
        raise ValueError(f"the variant 'reference' takes powers of two as widths, not {bad}; use 'linear'")
    return rounded


def _load_released(module: nn.Module, parts: Mapping[str, str], state: Mapping[str, Tensor], owner: str) -> None:
    """Copies `<anything>.<theirs>model.linear<i>.<kind>` to `<ours>.linears.<i>.<kind>`, all or nothing."""
    found: dict[str, Tensor] = {}
    for name, own in module.state_dict().items():
        part, _, number, kind = name.rsplit(".", 3)
        wanted = f"{parts[part]}model.linear{number}.{kind}"
        keys = [key for key in state if key == wanted or key.endswith(f".{wanted}")]
        if len(keys) != 1:
            what = "no key ends in" if not keys else f"{len(keys)} keys end in"
            raise WeightsError(f"weights do not fit {owner}: {what} {wanted!r}")
        found[name] = state[keys[0]]
        if found[name].shape != own.shape:
            shape, expected = tuple(found[name].shape), tuple(own.shape)
            raise WeightsError(f"weights do not fit {owner}: {keys[0]!r} is {shape}, not {expected}")
    layers = sum("model.linear" in key for key in state)
    if layers > len(found):
        raise WeightsError(f"weights do not fit {owner}: they hold {layers} of layers where it has {len(found)}")
    module.load_state_dict(found)


def _check_positive(**widths: int) -> None:
    for name, value in widths.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
