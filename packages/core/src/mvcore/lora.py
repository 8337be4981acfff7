"""Low-rank updates of any weight, or of some of its rows, on an unmodified module.

`W' = W + (alpha / rank) B A` (Hu et al., LoRA, arXiv 2106.09685, equation 3) as a `torch.nn.utils.parametrize`
parametrization: the module stays the library's own class with the library's own forward, whatever reads the weight
reads `W'`, and after `merge_lora` nothing of it is left. A parametrized weight is evaluated at each read; a step or an
encode therefore runs inside `torch.nn.utils.parametrize.cached()`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Rows: TypeAlias = "slice | range | Sequence[slice | range]"


class LowRank(nn.Module):
    """`W -> W + strength * alpha / rank * B A` on some rows of a weight.

    A weight of more than two dimensions (a convolution's) counts as (out, everything else).

    Attributes:
        a: (rank, in), drawn from `kaiming_uniform(a=sqrt(5))`.
        b: (rows, rank), zero, so that nothing changes before the first step.
        rows: the rows that change, as ascending disjoint ranges.
        strength: 1 = as trained, 0 = the untouched weight.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, rows: tuple[range, ...]) -> None:
        super().__init__()
        columns = weight[0].numel()
        n_rows = sum(len(part) for part in rows)
        if not 1 <= rank <= min(n_rows, columns):
            raise ValueError(f"rank must be from 1 to {min(n_rows, columns)} for {n_rows} rows x {columns}, got {rank}")
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha must be a positive number, got {alpha}")
        self.a = nn.Parameter(torch.empty(rank, columns, dtype=weight.dtype, device=weight.device))
        self.b = nn.Parameter(torch.zeros(n_rows, rank, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.rows = rows
        self.scale = alpha / rank
        self.strength = 1.0
        self.order: tuple[str, ...] = ()

    def set_strength(self, strength: float) -> None:
        """Scales the update: 0 gives the untouched weight bit for bit, 1 the trained one."""
        self.strength = float(strength)

    def delta(self) -> Tensor:
        """(rows, in) what is added to the rows at the present strength."""
        return (self.b @ self.a) * (self.scale * self.strength)

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight, in the weight's shape and type, whatever autocast says."""
        if self.strength == 0.0:
            return weight
        device = weight.device.type
        castable = torch.amp.autocast_mode.is_autocast_available(device)  # not so on the meta device
        with torch.autocast(device, enabled=False) if castable else nullcontext():
            flat = weight.flatten(1)
            if len(self.rows) == 1 and len(self.rows[0]) == weight.shape[0]:
                return torch.addmm(flat, self.b, self.a, alpha=self.scale * self.strength).view_as(weight)
            return (flat + self._spread(self.delta(), weight.shape[0])).view_as(weight)

    def _spread(self, delta: Tensor, n_rows: int) -> Tensor:
        """(n_rows, in): `delta` at its rows, zero elsewhere."""
        pieces: list[Tensor] = []
        at = taken = 0
        for part in self.rows:
            pieces += [delta.new_zeros(part.start - at, delta.shape[1]), delta[taken : taken + len(part)]]
            at, taken = part.stop, taken + len(part)
        pieces.append(delta.new_zeros(n_rows - at, delta.shape[1]))
        return torch.cat(pieces)

    def extra_repr(self) -> str:
        spans = ", ".join(f"{part.start}:{part.stop}" for part in self.rows)
        return f"rank={self.a.shape[0]}, scale={self.scale:g}, rows=[{spans}], strength={self.strength:g}"


def apply_lora(module: nn.Module, parameter: str, *, rank: int, alpha: float, rows: Rows | None = None) -> LowRank:
    """Adds a trainable low-rank update to one weight of `module`, in place; several may be stacked on one weight.

    The weight's own `requires_grad` and identity are left as they are. Nothing changes before the first step.

    Args:
        module: the module that owns the weight.
        parameter: the weight's name in it, as `weight` or `in_proj_weight`; a matrix (out, in) or a convolution's.
        rank: rank of the update.
        alpha: the update is scaled by `alpha / rank`.
        rows: which rows change: a slice, a range or several of them (`[range(0, d), range(2 * d, 3 * d)]` is q and v of
            a fused projection); None = all.

    Returns:
        The parametrization, with its trainable factors `a` (rank, in) and `b` (rows, rank).

    Raises:
        ValueError: no such weight, a rank that does not fit, or rows that are empty, overlap or lie outside.
    """
    weight = getattr(module, parameter, None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        has = [name for name, value in module.named_parameters(recurse=False) if value.ndim >= 2]
        raise ValueError(
            f"{type(module).__name__} has no weight matrix {parameter!r} (it has: {', '.join(has) or 'none'})"
        )
    update = LowRank(weight.detach(), rank, alpha, _checked_rows(rows, weight.shape[0]))
    update.order = tuple(module._parameters)
    parametrize.register_parametrization(module, parameter, update)
    return update


def _checked_rows(rows: Rows | None, n_rows: int) -> tuple[range, ...]:
    if rows is None:
        return (range(n_rows),)
    listed: list[object] = [rows] if isinstance(rows, (slice, range)) or not isinstance(rows, Sequence) else [*rows]
    spans = [part for part in listed if isinstance(part, (slice, range))]
    if len(spans) < len(listed):
        raise ValueError(f"rows must be a slice, a range or a list of them, got {rows!r}")
    parts = tuple(sorted((_as_range(part, n_rows) for part in spans), key=lambda part: part.start))
    if not parts or any(before.stop > after.start for before, after in itertools.pairwise(parts)):
        raise ValueError(f"rows must be non-empty ranges that do not overlap, got {rows}")
    return parts


def _as_range(part: slice | range, n_rows: int) -> range:
    span = range(*part.indices(n_rows)) if isinstance(part, slice) else part
    if span.step != 1 or not 0 <= span.start < span.stop <= n_rows:
        raise ValueError(f"rows {part} are not a non-empty range of step 1 within 0:{n_rows}")
    return span


def merge_lora(module: nn.Module) -> int:
    """Folds every low-rank update in `module` and its submodules into the weights, in place.

    Each weight then has exactly the value that was read before, bit for bit, and `state_dict()` the library's own keys
    in the library's own order.

    Returns:
        How many weights were merged.

    Raises:
        ValueError: a weight is also under a parametrization that is not a low-rank update.
    """
    found = [
        (part, name, list(updates))
        for part in module.modules()
        if parametrize.is_parametrized(part)
        for name, updates in part.parametrizations.items()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        if any(isinstance(update, LowRank) for update in updates)
    ]
    for part, name, updates in found:
        others = sorted({type(update).__name__ for update in updates if not isinstance(update, LowRank)})
        if others:
            raise ValueError(
                f"{type(part).__name__}.{name} is also parametrized by {', '.join(others)}; remove it first"
            )
    for part, name, updates in found:
        parametrize.remove_parametrizations(part, name, leave_parametrized=True)
        _restore_order(part, updates[0].order)
    return len(found)


def _restore_order(module: nn.Module, order: tuple[str, ...]) -> None:
    """Puts a module's parameters back in the order that they had before the first parametrization."""
    known = [name for name in order if name in module._parameters]
    rest = [name for name in module._parameters if name not in known]
    module._parameters.update({name: module._parameters.pop(name) for name in [*known, *rest]})
