"""What a step gives its losses and takes from them, on a small convolution: rows, maps, state, declared needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mvcore.errors import PluginError
from mvcore.model import Pipeline
from mvcore.parts import Backbone
from mvcore.training.objective import Objective
from mvcore.training.terms import Term
from mvcore.types import Features, ViewBatch
from torch import Tensor, nn

if TYPE_CHECKING:
    pass


class Given(nn.Module):
    """Gives back what a function of (features, batch) gives."""

    def __init__(self, function: Callable[[Features, ViewBatch], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Features, batch: ViewBatch) -> Any:
        return self.function(features, batch)


class AnySize(Backbone):
    """A small convolution that takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 6, 4, stride=4, dtype=torch.float64)
        self.dims = {"view": 6, "dense": 6}
        self.provides = frozenset({"view", "dense"})
        self.image_size = None
        self.library = "test"
        self.sizes: list[tuple[int, int]] = []

    @property
    def model(self) -> nn.Module:
        return self.net

    def set_trainable(self, mode: str) -> None:
        self.net.requires_grad_(mode == "all")

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        assert batch.images is not None
        self.sizes.append((batch.n_views, batch.images.shape[-1]))
        dense = self.net(batch.images.double() / 255)
        return {key: value for key, value in {"view": dense.mean((2, 3)), "dense": dense}.items() if key in keys}


def sized(counts: list[int], size: int, seed: int) -> ViewBatch:
    images = torch.randint(
        0, 256, (sum(counts), 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    ids = torch.arange(len(counts)) + 10 * seed
    return ViewBatch.make(counts, images=images, object_ids=ids)


def sum_of_squares(features: Features, batch: ViewBatch) -> Tensor:
    return features.view.square().sum()


def test_sources_of_different_size_go_through_apart() -> None:
    torch.manual_seed(0)
    backbone = AnySize()
    batches = {"a": sized([2, 1], 8, 1), "b": sized([1, 3], 16, 2), "c": sized([2], 8, 3)}
    keys = {name: frozenset({"view"}) for name in batches}
    term = Term("squares", Given(sum_of_squares), frozenset({"view"}), ("a", "b", "c"), 2.0)
    objective = Objective(Pipeline(backbone, []), [term], keys, {"a": 8, "b": 16, "c": 8})
    outcome = objective.step(batches, Tensor.backward)
    assert backbone.sizes == [(5, 8), (4, 16)]
    found = backbone.net.weight.grad
    backbone.net.weight.grad = None
    expected = sum(backbone.encode(batch, frozenset({"view"}))["view"].square().sum() for batch in batches.values())
    assert isinstance(expected, Tensor)
    (2 * expected).backward()
    assert float(outcome.total) == pytest.approx(2 * float(expected.detach()))
    torch.testing.assert_close(found, backbone.net.weight.grad)
    backbone.sizes.clear()
    backbone.net.weight.grad = None
    cached = objective.cached_step(batches, Tensor.backward, 2, lambda number: None)
    assert float(cached.total) == pytest.approx(float(outcome.total))
    torch.testing.assert_close(backbone.net.weight.grad, found)
    assert max(views for views, _ in backbone.sizes) <= 3  # an object is never split


def test_maps_are_not_held_for_a_whole_batch() -> None:
    """A term of scope `object` sees its chunk's maps only, and its divisor is that of the whole batch."""
    torch.manual_seed(0)
    backbone = AnySize()
    batch = sized([1, 2, 3, 1], 8, 1)
    rows: list[int] = []

    def squares(features: Features, own: ViewBatch) -> dict[str, Any]:
        rows.append(features["dense"].shape[0])
        return {"loss": features["dense"].square().sum(), "count": own.n_objects, "views": own.n_views}

    term = Term("maps", Given(squares), frozenset({"dense"}), ("a",), 1.0, "object")
    objective = Objective(Pipeline(backbone, []), [term], {"a": frozenset({"dense"})}, {"a": 8})
    whole = objective.step({"a": batch}, Tensor.backward)
    found, backbone.net.weight.grad = backbone.net.weight.grad, None
    assert rows == [7]
    rows.clear()
    cached = objective.cached_step({"a": batch}, Tensor.backward, 3, lambda number: None)
    assert max(rows) == 3
    # What it says beside its loss are sums as well.
    assert whole.logged == cached.logged == {"maps/views": 7}
    assert float(cached.terms["maps"]) == pytest.approx(float(whole.terms["maps"]))
    assert float(cached.total) == pytest.approx(float(whole.total))
    torch.testing.assert_close(backbone.net.weight.grad, found)


# -- losses ------------------------------------------------------------------------------------------------------------


def small(function: Callable[[Features, ViewBatch], Any], scope: str = "batch", **options: Any) -> Any:
    """One step of one loss on a small backbone."""
    term = Term("mine.loss", Given(function), options.pop("needs", frozenset({"view"})), ("a",), 1.0, scope)
    keys = {"a": frozenset({"view", "dense"})}
    objective = Objective(Pipeline(AnySize(), []), [term], keys, {"a": 8}, **options)
    return objective.step({"a": sized([2, 1], 8, 1)}, Tensor.backward)


def test_what_a_loss_says_beside_its_value_is_logged() -> None:
    outcome = small(lambda f, b: {"loss": f.view.sum(), "share": f.view.mean(), "rows": torch.tensor(3)})
    assert set(outcome.logged) == {"mine.loss/share", "mine.loss/rows"}
    assert float(outcome.logged["mine.loss/rows"]) == 3
    assert not outcome.logged["mine.loss/share"].requires_grad


def test_a_loss_that_raises_is_named_with_the_place() -> None:
    def broken(features: Features, batch: ViewBatch) -> Tensor:
        raise RuntimeError("two\nlines")

    with pytest.raises(
        PluginError, match=r"^loss mine\.loss failed: RuntimeError: two lines \(test_\w+\.py:\d+\)"
    ) as caught:
        small(broken)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_loss_out_of_memory_is_not_its_fault() -> None:
    def greedy(features: Features, batch: ViewBatch) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        small(greedy)


def test_plain_numbers_beside_the_value_are_logged() -> None:
    outcome = small(lambda f, b: {"loss": f.view.sum(), "share": 0.5, "rows": f.view.shape[0], "all": True})
    logged = {key: float(value) for key, value in outcome.logged.items()}
    assert logged == {"mine.loss/share": 0.5, "mine.loss/rows": 3, "mine.loss/all": 1}


@pytest.mark.parametrize(
    ("function", "scope", "said"),
    [
        (lambda f, b: f.view, "batch", r"mine\.loss is a tensor of shape \(3, 6\)"),
        (lambda f, b: None, "batch", r"mine\.loss is a NoneType"),
        (lambda f, b: 1.0, "batch", r"mine\.loss is a float"),
        (lambda f, b: {"value": f.view.sum()}, "batch", r"mine\.loss returned a dict without 'loss' \(it has: value"),
        (lambda f, b: {"loss": f.view.sum(), "share": "half"}, "batch", r"mine\.loss: 'share' is a str"),
        (lambda f, b: {"loss": 1.0, "share": 0.5}, "batch", r"mine\.loss is a float"),
        (lambda f, b: f.view.sum(), "object", r"mine\.loss has scope 'object' and must return"),
        (lambda f, b: {"loss": f.view.sum()}, "object", r"mine\.loss has scope 'object' and must return"),
        (lambda f, b: {"loss": 2, "count": 1}, "object", r"mine\.loss is a int"),
    ],
)
def test_a_wrong_return_is_named(function: Any, scope: str, said: str) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        small(function, scope)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda f, b: f.text.sum(), r"loss mine\.loss reads 'text'.*\(it has: view\)"),
        (lambda f, b: f["dense"].sum(), r"loss mine\.loss reads 'dense'"),
        (lambda f, b: f.view.sum() + b.images.sum(), r"loss mine\.loss reads batch\.images"),
        (lambda f, b: f.view.sum() * len(b.captions), r"loss mine\.loss reads batch\.captions"),
        (lambda f, b: b.state["ovt.anchors"].sum(), r"loss mine\.loss reads 'state:ovt\.anchors'"),
    ],
)
def test_reading_what_was_not_declared_is_refused_by_name(function: Any, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        small(function)


def test_a_loss_may_read_the_layout() -> None:
    outcome = small(lambda f, b: f.view.sum() * b.n_objects + 0 * (b.object_of_view + b.view_counts[0]).sum())
    assert math.isfinite(float(outcome.total))


def test_published_state_reaches_the_losses_that_need_it() -> None:
    def publish(batch: ViewBatch) -> dict[str, Tensor]:
        return {"mine.weight": 2.0 * batch.object_ids, "mine.other": batch.view_ids}

    def weighted(features: Features, batch: ViewBatch) -> Tensor:
        assert set(batch.state) == {"mine.weight"}
        return (features.view.sum(dim=1) * batch.state["mine.weight"][batch.object_of_view]).sum()

    backbone = AnySize()
    batch = sized([2, 1], 8, 1)
    term = Term("mine.loss", Given(weighted), frozenset({"view", "state:mine.weight"}), ("a",))
    axes: Any = {"state:mine.weight": "object", "state:mine.other": "view"}
    objective = Objective(
        Pipeline(backbone, []), [term], {"a": frozenset({"view"})}, {"a": 8}, {"state:mine.weight": publish}, axes
    )
    sums = backbone.encode(batch, frozenset({"view"}))["view"].sum(dim=1)
    expected = float((sums[0] * 20 + sums[1] * 20 + sums[2] * 22).detach())
    assert float(objective.step({"a": batch}, Tensor.backward).total) == pytest.approx(expected)
    assert float(objective.cached_step({"a": batch}, Tensor.backward, 1, lambda k: None).total) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("cached", [False, True])
def test_observers_see_every_feature_of_the_step_detached(cached: bool) -> None:
    backbone = AnySize()
    batch = sized([2, 1], 8, 1)
    term = Term(
        "maps", Given(lambda f, b: {"loss": f["dense"].sum(), "count": 1}), frozenset({"dense"}), ("a",), 1, "object"
    )
    objective = Objective(Pipeline(backbone, []), [term], {"a": frozenset({"view", "dense"})}, {"a": 8})
    seen: list[tuple[ViewBatch, Features]] = []
    objective.observers["a"] = [lambda own, features: seen.append((own, features))]
    if cached:
        objective.cached_step({"a": batch}, Tensor.backward, 1, lambda k: None)
    else:
        objective.step({"a": batch}, Tensor.backward)
    assert len(seen) == 1
    assert torch.equal(seen[0][0].object_ids, batch.object_ids)
    torch.testing.assert_close(seen[0][1].view, backbone.encode(batch, frozenset({"view"}))["view"].detach())
    assert not seen[0][1].view.requires_grad


def test_half_precision_reaches_losses_as_float32() -> None:
    class Half(AnySize):
        def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
            return {key: value.to(torch.bfloat16) for key, value in super().encode(batch, keys).items()}

    def check(features: Features, batch: ViewBatch) -> Tensor:
        assert features.view.dtype == torch.float32
        assert (features.view @ features.view.T).dtype == torch.float32  # autocast is off
        return features.view.sum()

    term = Term("mine.loss", Given(check), frozenset({"view"}), ("a",))
    objective = Objective(Pipeline(Half(), []), [term], {"a": frozenset({"view"})}, {"a": 8})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective.step({"a": sized([2, 1], 8, 1)}, Tensor.backward)
