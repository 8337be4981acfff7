"""What each term's gradient is like and whether two terms pull the model apart: measured every few steps of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Group
from rich.table import Table
from torch import Tensor

from mvcore.errors import DataError
from mvcore.evaluation.files import write_atomic
from mvcore.training.distributed import mean_over_ranks, world_size

REPORT = "gradients.json"

_OF_A_PAIR = ("mean cosine", "lowest", "conflict", "measured")

Grads = Sequence[Tensor | None]


class TermGradients:
    """Collects each weighted term's gradient in the same parameters; the parameters' own `grad` is left alone.

    Args:
        parameters: those of the model that train. A term's own parameters are not among them: no other term has a
            gradient there.
        cosines: whether all gradients are kept until they are compared, one copy of `parameters` a term.
    """

    def __init__(self, parameters: Iterable[Tensor], *, cosines: bool = True) -> None:
        self.parameters = tuple(parameters)
        self.cosines = cosines
        self._grads: dict[str, Grads] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Adds the gradient of `value`, the weighted term or a part of it; its graph is kept."""
        found = gradients_of(value, self.parameters)
        before = self._grads.get(name)
        self._grads[name] = found if before is None else [_sum(a, b) for a, b in zip(before, found, strict=True)]

    def measured(self) -> Measured:
        """Norms and cosines of the gradients over all ranks, on the device."""
        if world_size() > 1:
            for name in sorted(self._grads):
                self._grads[name] = mean_over_ranks(self._grads[name], self.parameters)
        norms = {name: _dot(grads, grads).sqrt() for name, grads in self._grads.items()}
        cosines: dict[tuple[str, str], Tensor] = {}
        if self.cosines:
            for one, other in combinations(self._grads, 2):
                # Where a term has no gradient there is no angle: 0 / 0 is NaN.
                product = _dot(self._grads[one], self._grads[other])
                cosines[one, other] = product / (norms[one] * norms[other])
        return Measured(norms, cosines)


@dataclass(frozen=True)
class Measured:
    """One step's norm of each weighted term's gradient, and the cosine between those of two; tensors of the device."""

    norms: Mapping[str, Tensor]
    cosines: Mapping[tuple[str, str], Tensor]


def gradients_of(value: Tensor, inputs: Sequence[Tensor]) -> Grads:
    """The gradient of a scalar in each input, None where it has none; its graph is kept."""
    if not value.requires_grad:
        return [None] * len(inputs)
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _dot(one: Grads, other: Grads) -> Tensor:
    parts = [(a * b).sum() for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return torch.stack(parts).sum() if parts else torch.zeros(())


# --- over a run -------------------------------------------------------------------------------------------------------


@dataclass
class _Series:
    """What was seen of one figure."""

    n: int = 0
    total: float = 0.0
    lowest: float = math.inf
    negative: int = 0

    def add(self, value: float) -> None:
        self.n, self.total = self.n + 1, self.total + value
        self.lowest, self.negative = min(self.lowest, value), self.negative + (value < 0)

    @property
    def mean(self) -> float:
        return self.total / self.n


@dataclass(eq=False)
class ConflictReport(Callback):
    """Logs what was measured in a step and sums it up after the run.

    Args:
        noted: joins the next row of metrics.
    """

    noted: dict[str, float]
    norms: dict[str, _Series] = field(default_factory=dict[str, _Series])
    cosines: dict[tuple[str, str], _Series] = field(default_factory=dict[tuple[str, str], _Series])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        measured: Measured | None = pl_module.gradients
        if measured is None:
            return
        # Reading them waits for the device, in the steps that are measured alone.
        for name, value in measured.norms.items():
            self.norms.setdefault(name, _Series()).add(float(value))
            self.noted[f"train/{name}.grad_norm"] = float(value)
        for pair, value in measured.cosines.items():
            cosine = float(value)
            if math.isfinite(cosine):
                self.cosines.setdefault(pair, _Series()).add(cosine)
                self.noted[f"train/cosine/{pair[0]}/{pair[1]}"] = cosine

    def state_dict(self) -> dict[str, Any]:
        return {
            "norms": {name: asdict(series) for name, series in self.norms.items()},
            "cosines": [[*pair, asdict(series)] for pair, series in self.cosines.items()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.norms = {name: _Series(**values) for name, values in state_dict["norms"].items()}
        self.cosines = {(one, other): _Series(**values) for one, other, values in state_dict["cosines"]}

    def summary(self) -> dict[str, Any]:
        """Means over all that was measured, as plain values.

        A term's `share` is its mean norm over the sum of all terms'; a pair's `conflict` is the part of the measured
        steps in which the cosine was negative, so that a step along one term's gradient makes the other term worse.
        """
        whole = sum(series.mean for series in self.norms.values())
        return {
            "terms": {
                name: {"n": series.n, "norm": series.mean, "share": series.mean / whole if whole else 0.0}
                for name, series in self.norms.items()
            },
            "pairs": [
                {
                    "terms": list(pair),
                    "n": series.n,
                    "cosine": series.mean,
                    "lowest": series.lowest,
                    "conflict": series.negative / series.n,
                }
                for pair, series in self.cosines.items()
            ],
        }

    def save(self, folder: Path) -> None:
        """Writes `gradients.json`.

        Raises:
            DataError: it cannot be written.
        """
        path = folder / REPORT
        try:
            write_atomic(path, (json.dumps(self.summary(), indent=1) + "\n").encode())
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from None

    def tables(self, title: str) -> Group:
        """The summary to be printed: the terms, and the pairs of them, those that conflict most first."""
        found = self.summary()
        terms, pairs = Table(title=f"gradients: {title}", title_justify="left"), Table()
        for table, names in (
            (terms, ("term", "mean norm", "share", "measured")),
            (pairs, ("term", "and term", *_OF_A_PAIR)),
        ):
            for name in names:
                table.add_column(name, justify="left" if "term" in name else "right", overflow="fold")
        for name, term in found["terms"].items():
            terms.add_row(name, f"{term['norm']:.3g}", f"{term['share']:.0%}", str(term["n"]))
        for pair in sorted(found["pairs"], key=lambda pair: (-pair["conflict"], pair["cosine"])):
            cosines = (f"{pair['cosine']:+.3f}", f"{pair['lowest']:+.3f}")
            pairs.add_row(*pair["terms"], *cosines, f"{pair['conflict']:.0%}", str(pair["n"]))
        return Group(terms, pairs) if found["pairs"] else Group(terms)
