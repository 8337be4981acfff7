"""One step's arithmetic: batches of the sources in, every loss term out, with or without a gradient cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvcore.blame import blamed_on
from mvcore.errors import PluginError
from mvcore.model import Pipeline
from mvcore.packing import concatenate
from mvcore.specs import STATE, Axis
from mvcore.training.distributed import gather, sum_over_ranks, world_size
from mvcore.training.gradient_cache import CachedStep
from mvcore.training.gradients import TermGradients
from mvcore.training.rows import Rows, as_float32, joined, no_rows, sliced
from mvcore.training.terms import Outcome, Term
from mvcore.types import Features, ViewBatch

Batches = Mapping[str, ViewBatch]
Backward = Callable[[Tensor], Any]
Observer = Callable[[ViewBatch, Features], None]


class Objective(nn.Module):
    """Model and losses of a run.

    Args:
        pipeline: the model.
        terms: the losses.
        keys: the features to compute on each source.
        image_sizes: side of each source's images; sources of equal size and keys are encoded in one pass.
        publishers: by state key, the trainer's `state` method.
        state_axes: by state key, what its rows stand for.
        watched: those of `keys` that are computed in every step, whichever terms it has.

    Attributes:
        observers: by source, who is shown each step's detached features of all ranks.
        watch: who is shown this rank's features of the step, one set a source, and the number of objects; or None.
        weights: of every term, in the present step.
        active: the terms that have a weight in the present step; the others are not computed.
        keys: the features to compute on each source in the present step.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        terms: Sequence[Term],
        keys: Mapping[str, frozenset[str]],
        image_sizes: Mapping[str, int],
        publishers: Mapping[str, Callable[[ViewBatch], Mapping[str, Tensor]]] | None = None,
        state_axes: Mapping[str, Axis] | None = None,
        watched: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.terms = tuple(terms)
        self.losses = nn.ModuleList(term.module for term in terms)
        self.publishers = dict(publishers or {})
        self.state_axes: dict[str, Axis] = {key.removeprefix(STATE): axis for key, axis in (state_axes or {}).items()}
        self._read_by_model = frozenset(
            key for link in pipeline.links for key in link.needs if key.startswith(STATE) and key in self.publishers
        )
        self.observers: dict[str, list[Observer]] = {}
        self.watch: Callable[[Sequence[Features], int], None] | None = None
        self._all_keys = dict(keys)
        self._watched = {name: (watched or {}).get(name, frozenset[str]()) for name in keys}
        self._image_sizes = dict(image_sizes)
        self.weights: dict[str, float] = {}
        self.active: tuple[Term, ...] = ()
        self.keys: dict[str, frozenset[str]] = {}
        self.groups: list[tuple[tuple[str, ...], frozenset[str]]] = []
        self.at_step(0)

    def at_step(self, step: int) -> None:
        """Takes the weights of a step; what only terms without one read is not computed in it."""
        self.weights = {term.name: term.weight_at(step) for term in self.terms}
        active = tuple(term for term in self.terms if self.weights[term.name] != 0)
        if self.keys and active == self.active:
            return
        self.active = active
        self.keys = {
            name: keys
            if len(active) == len(self.terms)
            else self._watched[name].union(*(term.reads for term in active if name in term.sources))
            for name, keys in self._all_keys.items()
        }
        groups: dict[tuple[int, frozenset[str]], list[str]] = {}
        for name, size in self._image_sizes.items():
            groups.setdefault((size, self.keys[name]), []).append(name)
        self.groups = [(tuple(names), wanted) for (_, wanted), names in groups.items()]

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def step(self, batches: Batches, backward: Backward, gradients: TermGradients | None = None) -> Outcome:
        """Computes all terms on whole batches and their gradient; the batches may be on the host.

        Args:
            gradients: is given each weighted term, before `backward`.
        """
        with parametrize.cached():
            rows = self.encode({name: self.moved(batch) for name, batch in batches.items()})
            self.show(rows)
            outcome = self.evaluate(rows, self.active)
            if gradients is not None:
                for name, value in outcome.terms.items():
                    gradients.add(name, self.weights[name] * value)
            backward(outcome.total)
        return self.detached(outcome)

    def cached_step(
        self,
        batches: Batches,
        backward: Backward,
        chunk_views: int,
        reseed: Callable[[int], None],
        gradients: TermGradients | None = None,
    ) -> Outcome:
        """The same values and gradients with at most about `chunk_views` views in an encoder pass (gradient cache).

        Args:
            reseed: called with the chunk's number before each of its two passes, so that both draw the same.
            gradients: is given each weighted term, chunk by chunk.
        """
        return self.detached(CachedStep(self, batches, chunk_views, reseed, gradients).run(backward))

    def show(self, rows: Mapping[str, Rows]) -> None:
        """Hands the detached features of all ranks to those who observe them."""
        if self.watch is not None:
            self.watch(
                [found.features for found in rows.values()], sum(found.batch.n_objects for found in rows.values())
            )
        for name, observers in self.observers.items():
            features, batch = rows[name].features, rows[name].batch
            values = {key: as_float32(features[key]).detach() for key in features}
            with torch.no_grad():
                shown = gather(Features(values, axes=features.axes), batch, self.state_axes)
                for observer in observers:
                    observer(shown[1], shown[0])

    def encode(self, batches: Batches) -> dict[str, Rows]:
        """Features of each source; sources that share image size and keys go through the model together."""
        found: dict[str, Rows] = {}
        for names, keys in self.groups:
            if len(names) == 1:
                found[names[0]] = self.encode_one(names[0], batches[names[0]])
                continue
            features = self.pipeline(concatenate([batches[name] for name in names]), keys)
            starts = no_rows()
            for name in names:
                batch = batches[name]
                found[name] = Rows(sliced(features, starts, batch.sizes), replace(batch, state={}))
                for axis, size in batch.sizes.items():
                    starts[axis] += size
        return found

    def encode_one(self, name: str, batch: ViewBatch) -> Rows:
        # What the model read of published state has done its part; it would be gathered over ranks for nothing.
        return Rows(self.pipeline(batch, self.keys[name]), replace(batch, state={}))

    def moved(self, batch: ViewBatch) -> ViewBatch:
        """The batch on the device, with the published state that the model itself reads."""
        moved = batch.to(self.device, non_blocking=True)
        return moved.with_state(self._state(self._read_by_model, moved)) if self._read_by_model else moved

    def evaluate(self, rows: Mapping[str, Rows], terms: Iterable[Term]) -> Outcome:
        """Every term on the rows of its own sources, in float32 with autocast off, and their weighted sum."""
        outcome = Outcome(torch.zeros((), device=self.device))
        for term in terms:
            if term.scope == "object":
                sums = self.object_sums(term, rows, outcome.logged)
                count = sum_over_ranks(sums["count"]).clamp(min=1)
                value = sums["loss"] * (world_size() / count)
            else:
                value = self._batch_value(term, rows, outcome.logged)
            outcome.terms[term.name] = value
            outcome.total = outcome.total + self.weights[term.name] * value
        return outcome

    def _batch_value(self, term: Term, rows: Mapping[str, Rows], logged: dict[str, Tensor]) -> Tensor:
        result = self._call(term, rows, gathered=True)
        if isinstance(result, Mapping):
            if "loss" not in result:
                raise PluginError(f"loss {term.name} returned a dict without 'loss' (it has: {', '.join(result)})")
            for key, value in result.items():
                if key != "loss":
                    logged[f"{term.name}/{key}"] = _logged(value, f"loss {term.name}: {key!r}", self.device)
            result = result["loss"]
        return _scalar(result, f"loss {term.name}")

    def object_sums(
        self, term: Term, rows: Mapping[str, Rows], logged: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """A term's `loss` and `count` on these rows; what else it returns is added to `logged`."""
        result = self._call(term, rows, gathered=False)
        if not isinstance(result, Mapping) or not {"loss", "count"} <= result.keys():
            raise PluginError(f"loss {term.name} has scope 'object' and must return {{'loss': sum, 'count': n}}")
        count = torch.as_tensor(result["count"], dtype=torch.float32, device=self.device)
        if logged is not None:
            for key in sorted(result.keys() - {"loss", "count"}):
                name, value = f"{term.name}/{key}", _logged(result[key], f"loss {term.name}: {key!r}", self.device)
                logged[name] = logged.get(name, 0) + value.float()
        return {"loss": _scalar(result["loss"], f"loss {term.name}"), "count": count.detach()}

    def _call(self, term: Term, rows: Mapping[str, Rows], *, gathered: bool) -> Any:
        mine = joined([rows[name] for name in term.sources if name in rows])
        batch = replace(mine.batch, state=self._state(term.needs, mine.batch))
        if "embeddings" not in term.needs:
            batch = replace(batch, embeddings={})  # which are not gathered for nothing
        features = Features(
            {key: as_float32(mine.features[key]) for key in mine.features if key in term.reads},
            axes=self.pipeline.axes,
        )
        if gathered:
            features, batch = gather(features, batch, self.state_axes)
        owner = f"loss {term.name}"
        with torch.autocast(self.device.type, enabled=False), blamed_on(owner):
            return term.module(features.restricted(term.reads, owner), batch.restricted(term.needs, owner))

    def _state(self, needs: frozenset[str], batch: ViewBatch) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for key in sorted(key for key in needs if key.startswith(STATE)):
            name = key.removeprefix(STATE)
            if name not in state:
                state.update(self.publishers[key](batch))
        return state

    def detached(self, outcome: Outcome) -> Outcome:
        """The same on every rank: a term of scope `object` was this rank's share times the number of ranks."""
        shown, total = dict[str, Tensor](), torch.zeros((), device=self.device)
        for term in self.terms:
            if term.name in outcome.terms:
                value = outcome.terms[term.name].detach()
                shown[term.name] = sum_over_ranks(value) / world_size() if term.scope == "object" else value
                total = total + self.weights[term.name] * shown[term.name]
        sums = tuple(f"{term.name}/" for term in self.terms if term.scope == "object")
        logged = {
            key: sum_over_ranks(value) if key.startswith(sums) else value for key, value in outcome.logged.items()
        }
        return Outcome(total, shown, logged, dict(self.weights))


def _scalar(value: Any, owner: str) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise PluginError(f"{owner} is {found} where a scalar tensor belongs, alone or in a dict under 'loss'")
    return value


def _logged(value: Any, owner: str, device: torch.device) -> Tensor:
    """What a loss says beside its value: a scalar tensor or a plain number."""
    if isinstance(value, (int, float)):
        return torch.tensor(float(value), device=device)
    return _scalar(value, owner).detach()
