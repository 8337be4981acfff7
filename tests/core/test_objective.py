"""One step's arithmetic against unbatched loops: the value of each term and the gradient of each parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mvcore.model import Pipeline
from mvcore.training.fit import Training
from mvcore.training.objective import Objective
from mvcore.training.terms import Term
from mvcore.types import Features, ViewBatch
from torch import Tensor, nn

if TYPE_CHECKING:
    from conftest import Lab

Batches = dict[str, ViewBatch]
IMAGE_SIZES = {"objects": 32, "whole": 32}


class Spread(nn.Module):
    """Scope `object`: the summed variance of each object's views, over objects of more than one view."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        total, count = features.zero(), 0
        for i in range(batch.n_objects):
            views = features.view[batch.object_of_view == i]
            if len(views) > 1:
                total, count = total + self.gain * views.var(dim=0).sum(), count + 1
        return {"loss": total, "count": torch.tensor(count)}


# -- the model in float64 and its batches ------------------------------------------------------------------------------


def built(lab: Lab, folder: Path, **changes: Any) -> tuple[Training, Batches]:
    """A run in float64 whose every weight trains, its batches of one step, and fixed published state."""
    values = lab.values(
        encoder={"train": "all"},
        adapters={"ovt.viformer": {"dropout": 0.0}},
        data={
            "objects": {"batch_size": 13},
            "whole": {
                "id": "data.views",
                "path": str(lab.store),
                "batch_size": 3,
                "views_per_object": [1, 4],
                "captions": "all",
            },
        },
        losses={"ovt.vc": {"on": ("objects",)}},
        trainers={"ovt.outlier_mining": {"on": ("objects",)}},
    )
    training = lab.prepare(lab.changed(values, changes), folder)
    training.pipeline.double()
    moved(training.pipeline)
    assert training.module.make_loader is not None
    return training, next(iter(training.module.make_loader(0, 1, 0)))


def moved(pipeline: Pipeline) -> None:
    """Random weights everywhere, so that what starts at zero (LoRA's B) has a gradient that says something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in pipeline.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn_like(parameter))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Of every parameter that trains; zero where none came."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def stepped(training: Training, step: Callable[[], Any]) -> tuple[Any, dict[str, Tensor]]:
    """What a step gives, and the gradients that it leaves."""
    training.module.zero_grad(set_to_none=True)
    outcome = step()
    return outcome, gradients(training.module)


def agree(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    assert scale > 1e-4
    for name in one:
        assert float((one[name] - other[name]).abs().max()) <= tolerance * scale, name


# -- the oracle --------------------------------------------------------------------------------------------------------


def naive_views(training: Training, batch: ViewBatch) -> list[Tensor]:
    """Each view's vector, from a pass of its own."""
    assert batch.images is not None
    return [
        training.pipeline(ViewBatch.make([1], images=batch.images[n : n + 1]), frozenset({"view"})).view[0]
        for n in range(batch.n_views)
    ]


def naive_texts(training: Training, batch: ViewBatch) -> list[Tensor]:
    """Each caption's vector, from a pass of its own."""
    backbone: Any = training.pipeline.backbone
    return [backbone.clip.encode_text(backbone.tokenizer([caption]), normalize=False)[0] for caption in batch.captions]


def naive_itc(
    views: list[Tensor], texts: list[Tensor], captions: list[set[str]], words: list[str], s: Tensor
) -> Tensor:
    """The definition of `core.itc`: `captions[n]` describe view n, `words[t]` is text t."""

    def unit(x: Tensor) -> Tensor:
        return x / x.norm()

    logits = [[s.exp() * (unit(x) * unit(y)).sum() for y in texts] for x in views]
    by_view, by_text = [], []
    for n in range(len(views)):
        positives = [logits[n][t] for t in range(len(texts)) if words[t] in captions[n]]
        by_view.append(torch.stack(logits[n]).logsumexp(0) - sum(positives) / len(positives))
    for t in range(len(texts)):
        positives = [logits[n][t] for n in range(len(views)) if words[t] in captions[n]]
        column = torch.stack([logits[n][t] for n in range(len(views))])
        by_text.append(column.logsumexp(0) - sum(positives) / len(positives))
    return (sum(by_view) / len(by_view) + sum(by_text) / len(by_text)) / 2  # pyright: ignore[reportReturnType]


def captions_of(batch: ViewBatch) -> list[set[str]]:
    """For each view the captions that describe it."""
    found: list[set[str]] = []
    for n in range(batch.n_views):
        rows = [t for t in range(len(batch.captions)) if batch.caption_view[t] == n] or [
            t
            for t in range(len(batch.captions))
            if batch.caption_view[t] < 0 and batch.caption_object[t] == batch.object_of_view[n]
        ]
        found.append({batch.captions[t] for t in rows})
    return found


def naive_vc(views: list[Tensor], batch: ViewBatch, state: Mapping[str, Tensor], margin: float) -> Tensor:
    """The definition of `ovt.vc`."""
    terms: list[Tensor] = []
    for n, view in enumerate(views):
        if bool(state["ovt.outliers"][n]):
            anchor = state["ovt.anchors"][int(batch.object_of_view[n])].double()
            terms.append(1 - (view * anchor).sum() / (view.norm() * anchor.norm()) + margin)
    assert terms
    return torch.stack(terms).mean()


def naive_spread(views: list[Tensor], batch: ViewBatch) -> Tensor:
    """The mean over objects of more than one view of their views' variance."""
    terms: list[Tensor] = []
    for i in range(batch.n_objects):
        mine = [view for n, view in enumerate(views) if batch.object_of_view[n] == i]
        if len(mine) > 1:
            centre = sum(mine) / len(mine)
            terms.append(sum(((view - centre) ** 2).sum() for view in mine) / (len(mine) - 1))  # pyright: ignore[reportArgumentType]
    assert terms
    return sum(terms) / len(terms)  # pyright: ignore[reportReturnType]


def with_spread(training: Training) -> Objective:
    """The run's objective with a term of scope `object` on one source."""
    old = training.module.objective
    spread = Term("spread", Spread(), frozenset({"view", "object_ids"}), ("whole",), 0.7, "object")
    new = Objective(
        training.pipeline,
        [*old.terms, spread],
        old.keys,
        IMAGE_SIZES,
        old.publishers,
        {f"state:{key}": axis for key, axis in old.state_axes.items()},
    )
    training.module.objective = new
    return new


def naive_step(training: Training, batches: Batches) -> dict[str, Tensor]:
    """Every term by its definition, in float64."""
    views = {name: naive_views(training, batch) for name, batch in batches.items()}
    texts = [text for batch in batches.values() for text in naive_texts(training, batch)]
    scale = training.pipeline(next(iter(batches.values())), frozenset({"logit_scale"})).logit_scale
    words = [word for batch in batches.values() for word in batch.captions]
    described = [captions for batch in batches.values() for captions in captions_of(batch)]
    state = training.trainers[0].state(batches["objects"])
    spread = training.module.objective.terms[-1].module
    return {
        "core.itc": naive_itc([v for own in views.values() for v in own], texts, described, words, scale),
        "ovt.vc": naive_vc(views["objects"], batches["objects"], state, 0.3),
        "spread": spread.gain * naive_spread(views["whole"], batches["whole"]),  # pyright: ignore[reportOperatorIssue]
    }


def test_each_term_equals_its_definition_in_value_and_gradient(lab: Lab, tmp_path: Path) -> None:
    training, batches = built(lab, tmp_path)
    objective = with_spread(training)
    training.trainers[0].mine()
    for term in objective.terms:  # each alone, then all
        alone = Objective(
            training.pipeline,
            [term],
            objective.keys,
            IMAGE_SIZES,
            objective.publishers,
            {f"state:{key}": axis for key, axis in objective.state_axes.items()},
        )
        outcome, found = stepped(training, lambda alone=alone: alone.step(batches, Tensor.backward))
        weights = {term.name: term.weight_at(0)}
        expected, wanted = stepped(training, lambda weights=weights: differentiated(training, batches, weights))
        assert float(outcome.total) == pytest.approx(expected, rel=1e-9)
        agree(found, wanted)
    weights = {term.name: term.weight_at(0) for term in objective.terms}
    outcome, found = stepped(training, lambda: objective.step(batches, Tensor.backward))
    expected, wanted = stepped(training, lambda: differentiated(training, batches, weights))
    assert float(outcome.total) == pytest.approx(expected, rel=1e-9)
    assert set(outcome.terms) == {"core.itc", "ovt.vc", "spread"}
    assert float(outcome.total) == pytest.approx(sum(w * float(outcome.terms[n]) for n, w in weights.items()))
    agree(found, wanted)
    assert not outcome.total.requires_grad
    assert not any(value.requires_grad for value in [*outcome.terms.values(), *outcome.logged.values()])


def differentiated(training: Training, batches: Batches, weights: Mapping[str, float]) -> float:
    """The naive weighted sum, after its backward pass."""
    terms = naive_step(training, batches)
    total = sum(weight * terms[name] for name, weight in weights.items())
    assert isinstance(total, Tensor)
    total.backward()
    return float(total.detach())


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_gradient_cache_equals_the_whole_batch(lab: Lab, tmp_path: Path, chunk: int) -> None:
    training, batches = built(lab, tmp_path)
    objective = with_spread(training)
    training.trainers[0].mine()
    whole, wanted = stepped(training, lambda: objective.step(batches, Tensor.backward))
    cached, found = stepped(
        training, lambda: objective.cached_step(batches, Tensor.backward, chunk, lambda number: None)
    )
    assert cached.terms.keys() == whole.terms.keys()
    for name, value in whole.terms.items():
        assert float(cached.terms[name]) == pytest.approx(float(value), rel=1e-9), name
    assert float(cached.total) == pytest.approx(float(whole.total), rel=1e-9)
    assert {k: float(v) for k, v in cached.logged.items()} == pytest.approx(
        {k: float(v) for k, v in whole.logged.items()}
    )
    agree(found, wanted)


def test_the_gradient_cache_draws_dropout_alike_in_both_passes(lab: Lab, tmp_path: Path) -> None:
    """Against one graph over the same chunks with the same seeds."""
    training, batches = built(lab, tmp_path, adapters={"ovt.viformer": {"dropout": 0.3}})
    objective, chunk = training.module.objective, 4
    training.trainers[0].mine()

    def reseed(number: int) -> None:
        torch.manual_seed(100 + number)

    cached, found = stepped(training, lambda: objective.cached_step(batches, Tensor.backward, chunk, reseed))

    def reference() -> Tensor:
        from mvcore.packing import split_objects
        from mvcore.training.rows import Rows, joined

        rows, number = {}, 0
        for name, batch in batches.items():
            parts = []
            for piece in split_objects(batch, chunk):
                reseed(number)
                number += 1
                parts.append(Rows(training.pipeline(piece, objective.keys[name]), piece))
            rows[name] = joined(parts)
        total = objective.evaluate(rows, objective.terms).total
        total.backward()
        return total.detach()

    total, wanted = stepped(training, reference)
    assert float(cached.total) == pytest.approx(float(total), rel=1e-9)
    agree(found, wanted)
    again, _ = stepped(
        training, lambda: objective.cached_step(batches, Tensor.backward, chunk, lambda k: reseed(k + 50))
    )
    assert float(again.total) != float(cached.total)  # dropout is really on


# -- sources -----------------------------------------------------------------------------------------------------------


def test_sources_of_equal_size_share_a_pass_and_losses_get_their_own_rows(lab: Lab, tmp_path: Path) -> None:
    training, batches = built(lab, tmp_path)
    objective = training.module.objective
    passes: list[int] = []
    training.pipeline.backbone.model.visual.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))  # pyright: ignore[reportAttributeAccessIssue]
    seen: dict[str, tuple[list[int], list[str], list[int]]] = {}

    class Note(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, features: Features, batch: ViewBatch) -> Tensor:
            assert features.view.shape[0] == batch.n_views
            assert features.text.shape[0] == len(batch.captions)
            seen[self.name] = (batch.view_ids.tolist(), list(batch.captions), batch.source.tolist())
            return features.view.sum() * 0

    needs = frozenset({"view", "text", "captions", "view_ids"})
    terms = [
        Term("both", Note("both"), needs, ("objects", "whole")),
        Term("first", Note("first"), needs, ("objects",)),
        Term("second", Note("second"), needs, ("whole",)),
    ]
    keys = {name: frozenset({"view", "text"}) for name in batches}
    Objective(training.pipeline, terms, keys, IMAGE_SIZES).step(batches, Tensor.backward)
    views = [batches["objects"].n_views, batches["whole"].n_views]
    assert passes == [sum(views)]
    ids, captions = ([b.view_ids.tolist() for b in batches.values()], [list(b.captions) for b in batches.values()])
    assert seen["both"][:2] == (ids[0] + ids[1], captions[0] + captions[1])
    assert seen["first"] == (ids[0], captions[0], [0] * batches["objects"].n_objects)
    assert seen["second"] == (ids[1], captions[1], [1] * batches["whole"].n_objects)
    passes.clear()
    # Other keys on each source: what one does not want is not computed for it.
    split = {"objects": frozenset({"view", "text"}), "whole": frozenset({"text"})}
    Objective(training.pipeline, terms[1:2], split, IMAGE_SIZES).step(batches, Tensor.backward)
    assert passes == [views[0]]
    del objective


# -- weights and outliers ----------------------------------------------------------------------------------------------


def test_without_an_outlier_the_total_is_the_image_text_loss(lab: Lab, tmp_path: Path) -> None:
    """L4."""
    training, batches = built(lab, tmp_path)
    mining = training.trainers[0]
    mining.mine()
    mining._outliers = torch.zeros_like(mining._outliers)
    outcome, found = stepped(training, lambda: training.module.objective.step(batches, Tensor.backward))
    assert float(outcome.terms["ovt.vc"]) == 0
    assert float(outcome.total) == float(outcome.terms["core.itc"])
    alone = Objective(
        training.pipeline, training.module.objective.terms[:1], training.module.objective.keys, IMAGE_SIZES
    )
    _, wanted = stepped(training, lambda: alone.step(batches, Tensor.backward))
    agree(found, wanted, tolerance=1e-12)


def test_a_loss_of_weight_zero_costs_nothing(lab: Lab, tmp_path: Path) -> None:
    training, batches = built(lab, tmp_path, losses={"ovt.vc": {"weight": 0.0}})
    assert [term.name for term in training.module.objective.terms] == ["core.itc"]
    assert training.trainers == []  # nobody reads what it would mine
    outcome, found = stepped(training, lambda: training.module.objective.step(batches, Tensor.backward))
    full, _ = built(lab, tmp_path)
    alone = Objective(full.pipeline, full.module.objective.terms[:1], full.module.objective.keys, IMAGE_SIZES)
    full.module.objective = alone
    expected, wanted = stepped(full, lambda: alone.step(batches, Tensor.backward))
    assert float(outcome.total) == float(expected.total)
    agree(found, wanted, tolerance=1e-12)


def test_consistency_from_the_steps_embeddings_equals_a_second_pass(lab: Lab, tmp_path: Path) -> None:
    """L5: indexing the embeddings that the step has anyway gives what encoding the outliers again would."""
    from mvcore_ovt import viewpoint_consistency

    training, batches = built(lab, tmp_path)
    training.trainers[0].mine()
    own = training.module.objective
    term = next(term for term in own.terms if term.name == "ovt.vc")
    alone = Objective(training.pipeline, [term], own.keys, IMAGE_SIZES, own.publishers)
    outcome, found = stepped(training, lambda: alone.step(batches, Tensor.backward))

    def second_pass() -> Tensor:
        batch = batches["objects"]
        state = training.trainers[0].state(batch)
        mask = state["ovt.outliers"]
        assert batch.images is not None
        chosen = ViewBatch.make([1] * int(mask.sum()), images=batch.images[mask])
        views = training.pipeline(chosen, frozenset({"view"})).view
        loss = viewpoint_consistency(views, state["ovt.anchors"][batch.object_of_view[mask]], margin=0.3)
        loss.backward()
        return loss.detach()

    again, wanted = stepped(training, second_pass)
    assert float(outcome.total) == pytest.approx(float(again), rel=1e-9)
    agree(found, wanted)
