"""A step in chunks with the values and gradients of the whole batch: the gradient cache of Gao et al. 2021.

Every chunk is encoded twice: without gradient, to give the losses the whole batch, then with gradient, to carry the
losses' gradient in the features on into the model. Terms of scope `object` are evaluated inside the second pass, so
that large features as `dense` are never held for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from mvcore.packing import split_objects
from mvcore.specs import Axis
from mvcore.training.distributed import sum_over_ranks, world_size
from mvcore.training.gradients import TermGradients, gradients_of
from mvcore.training.rows import Rows, as_float32, joined, leaf, no_rows
from mvcore.training.terms import Outcome, Term
from mvcore.types import ViewBatch

if TYPE_CHECKING:
    from mvcore.training.objective import Objective

LeafGrads = dict[str, Tensor | None]


class CachedStep:
    """One step of an objective.

    Args:
        batches: by source, on the host or the device.
        chunk_views: about so many views, of whole objects, go into an encoder pass.
        reseed: called with the chunk's number before each of its two passes, so that both draw the same.
        gradients: is given each weighted term, chunk by chunk.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Mapping[str, ViewBatch],
        chunk_views: int,
        reseed: Callable[[int], None],
        gradients: TermGradients | None,
    ) -> None:
        self._objective = objective
        self._reseed = reseed
        self._gradients = gradients
        self._whole = tuple(term for term in objective.active if term.scope == "batch")
        self._inside = tuple(term for term in objective.active if term.scope == "object")
        self._chunks = {name: split_objects(batch, chunk_views) for name, batch in batches.items()}
        self._order = [(name, k) for name, chunks in self._chunks.items() for k in range(len(chunks))]

    def run(self, backward: Callable[[Tensor], Any]) -> Outcome:
        """The terms, with `backward` called on what leads to their gradient; each term is this rank's."""
        leaves, totals = self._without_gradient()
        self._objective.show(leaves)
        outcome = Outcome(torch.zeros((), device=self._objective.device))
        apart: dict[str, dict[str, LeafGrads]] = {}
        if self._whole:
            outcome = self._objective.evaluate(leaves, self._whole)
            if self._gradients is not None:
                apart = self._apart(outcome, leaves)
            backward(outcome.total)
        together = {name: {key: value.grad for key, value in leaf.features.items()} for name, leaf in leaves.items()}
        self._with_gradient(outcome, together, apart, totals, backward)
        return outcome

    def _without_gradient(self) -> tuple[dict[str, Rows], dict[str, Tensor]]:
        """What the terms of the whole batch read, as leaves, and the counts of the other terms over all ranks."""
        objective = self._objective
        held = {
            name: objective.keys[name]
            if name in objective.observers
            else frozenset[str]().union(*(term.reads for term in self._whole if name in term.sources))
            for name in self._chunks
        }
        parts: dict[str, list[Rows]] = {name: [] for name in self._chunks}
        counts: dict[str, Tensor] = {}
        with torch.no_grad():
            for number, (name, k) in enumerate(self._order):
                rows = self._encoded(number, name, k)
                for term in self._inside_of(name):
                    found = objective.object_sums(term, {name: rows})["count"]
                    counts[term.name] = counts.get(term.name, 0) + found
                parts[name].append(Rows(rows.features.restricted(held[name], "gradient cache"), rows.batch))
        totals = {name: sum_over_ranks(count) for name, count in counts.items()}
        return {name: leaf(joined(rows)) for name, rows in parts.items()}, totals

    def _with_gradient(
        self,
        outcome: Outcome,
        together: Mapping[str, LeafGrads],
        apart: Mapping[str, Mapping[str, LeafGrads]],
        totals: Mapping[str, Tensor],
        backward: Callable[[Tensor], Any],
    ) -> None:
        """Carries the gradient in the features on into the model, and adds the terms of single objects."""
        offsets = {name: no_rows() for name in self._chunks}
        for number, (name, k) in enumerate(self._order):
            with parametrize.cached():
                rows = self._encoded(number, name, k)
                surrogate = _surrogate(rows, together[name], offsets[name], first=k == 0)
                for term_name, grads in apart.items():
                    self._give(term_name, _surrogate(rows, grads[name], offsets[name], first=k == 0))
                for term in self._inside_of(name):
                    surrogate = surrogate + self._inside_value(outcome, term, {name: rows}, totals[term.name])
                # A source that nobody reads, as in a control, has no graph.
                if surrogate.requires_grad:
                    backward(surrogate)
            for axis, size in rows.batch.sizes.items():
                offsets[name][axis] += size

    def _encoded(self, number: int, name: str, k: int) -> Rows:
        self._reseed(number)
        return self._objective.encode_one(name, self._objective.moved(self._chunks[name][k]))

    def _inside_of(self, source: str) -> list[Term]:
        return [term for term in self._inside if source in term.sources]

    def _inside_value(self, outcome: Outcome, term: Term, rows: Mapping[str, Rows], total: Tensor) -> Tensor:
        """A chunk's weighted share of a term of scope `object`; it is added to the outcome, detached."""
        sums = self._objective.object_sums(term, rows, outcome.logged)
        value = sums["loss"] * (world_size() / total.clamp(min=1))
        weighted = self._objective.weights[term.name] * value
        self._give(term.name, weighted)
        outcome.terms[term.name] = outcome.terms.get(term.name, torch.zeros_like(value)) + value.detach()
        outcome.total = outcome.total + weighted.detach()
        return weighted

    def _give(self, name: str, weighted: Tensor) -> None:
        if self._gradients is not None:
            self._gradients.add(name, weighted)

    def _apart(self, outcome: Outcome, leaves: Mapping[str, Rows]) -> dict[str, dict[str, LeafGrads]]:
        """By term and source, the weighted term's gradient in each feature."""
        places = [(n, k, v) for n, rows in leaves.items() for k, v in rows.features.items() if v.requires_grad]
        apart: dict[str, dict[str, LeafGrads]] = {}
        for term, value in outcome.terms.items():
            found = apart[term] = {name: {} for name in leaves}
            grads = gradients_of(self._objective.weights[term] * value, [value for _, _, value in places])
            for (name, key, _), grad in zip(places, grads, strict=True):
                found[name][key] = grad
        return apart


def _surrogate(rows: Rows, grads: LeafGrads, offsets: Mapping[Axis, int], *, first: bool) -> Tensor:
    """A scalar whose gradient in the model is the losses' gradient through this chunk's features."""
    sizes = rows.batch.sizes
    total = rows.features.zero()
    for key, whole in grads.items():
        axis = rows.features.axes[key]
        if whole is None or (axis == "none" and not first):
            continue
        grad = whole if axis == "none" else whole[offsets[axis] : offsets[axis] + sizes[axis]]
        if rows.features[key].requires_grad:
            total = total + (as_float32(rows.features[key]) * grad).sum()
    return total
