"""The checks find what is wrong with a part, and say which one and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from mvcore.api import Adapter, LossSpec, hookimpl
from mvcore.plugins import load_plugins, reset
from mvcore.specs import EncoderSpec
from mvcore.testing import ConformanceError, check_encoder, check_loss
from torch import nn


class Good(nn.Module):
    """The mean over objects of the squared mean view: right in every order."""

    def forward(self, features: Any, batch: Any) -> Any:
        view = features.view
        sums = view.new_zeros(batch.n_objects, view.shape[1]).index_add(0, batch.object_of_view, view)
        return (sums / batch.view_counts[:, None]).square().mean()


class Nosy(Good):
    def forward(self, features: Any, batch: Any) -> Any:
        return features.text.sum()


class Nan(Good):
    def forward(self, features: Any, batch: Any) -> Any:
        return (features.view * 0).sqrt().sum()


class Detached(Good):
    def forward(self, features: Any, batch: Any) -> Any:
        return features.view.detach().sum()


class First(Good):
    """Weighs views by their place in the batch."""

    def forward(self, features: Any, batch: Any) -> Any:
        return (features.view.sum(dim=1) * torch.arange(batch.n_views)).sum()


class Vector(Good):
    def forward(self, features: Any, batch: Any) -> Any:
        return features.view.sum(dim=1)


class Counts(Good):
    """Keeps a state between calls."""

    calls = 0

    def forward(self, features: Any, batch: Any) -> Any:
        self.calls += 1
        return features.view.square().mean() * self.calls


class Writes(Good):
    def forward(self, features: Any, batch: Any) -> Any:
        torch.set_num_threads(3)
        return super().forward(features, batch)


class Single(Good):
    def forward(self, features: Any, batch: Any) -> Any:
        if batch.max_views < 2:
            raise IndexError("no second view")
        return super().forward(features, batch)


class Mean(Good):
    """Of scope `object`, but divided by the number of objects."""

    def forward(self, features: Any, batch: Any) -> Any:
        return {"loss": super().forward(features, batch), "count": batch.n_objects}


class Wide(Adapter):
    def forward(self, features: Any, batch: Any) -> Any:
        return {"view": torch.cat([features.view, features.view], dim=1)}


class Mixed(Adapter):
    """A vector that depends on the whole batch."""

    def forward(self, features: Any, batch: Any) -> Any:
        return {"view": features.view - features.view.mean(dim=0)}


class Freezing(Adapter):
    def attach(self, backbone: Any) -> None:
        backbone.model.requires_grad_(False)


@pytest.fixture
def plugin() -> Iterator[None]:
    """A plugin `lab` with all of them."""
    losses = (Good, Nosy, Nan, Detached, First, Vector, Counts, Writes, Single)
    specs = [LossSpec(name=c.__name__.lower(), summary="x", needs={"view"}, factory=c) for c in losses]
    specs.append(LossSpec(name="mean", summary="x", needs={"view"}, factory=Mean, scope="object"))
    adapter: dict[str, Any] = {"summary": "x", "kind": "adapter"}
    encoders = [
        *[
            EncoderSpec(name=c.__name__.lower(), factory=c, needs={"view"}, provides={"view"}, **adapter)
            for c in (Wide, Mixed)
        ],
        EncoderSpec(name="freezing", factory=Freezing, **adapter),
    ]
    module: Any = ModuleType("lab")
    module.MVCORE_API = 1
    module.mvcore_register_losses = hookimpl(specname="mvcore_register_losses")(lambda: specs)
    module.mvcore_register_encoders = hookimpl(specname="mvcore_register_encoders")(lambda: encoders)
    threads = torch.get_num_threads()
    reset()
    load_plugins().register(module)
    yield
    reset()
    torch.set_num_threads(threads)


def test_a_good_loss_passes(plugin: None):
    assert {finding.status for finding in check_loss("lab.good")} == {"ok", "skipped"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nosy", "value and gradient: loss lab.nosy reads 'text', which it does not declare"),
        ("nan", "the gradient of 'view' is not finite"),
        ("detached", "its value hangs on no feature and no parameter"),
        ("first", "order of objects: its value is"),
        ("vector", "'loss' is a tensor of shape (10,) where a scalar tensor belongs"),
        ("counts", "same input, same value: its value is"),
        ("writes", "it changes torch's number of threads"),
        ("single", "small batches: on one view it raised IndexError: no second view"),
        ("mean", "ragged against a loop over objects: 'loss' is"),
    ],
)
def test_a_fault_of_a_loss_is_named(plugin: None, name: str, text: str):
    torch.set_num_threads(1)
    with pytest.raises(ConformanceError) as caught:
        check_loss(f"lab.{name}")
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"loss lab.{name}: ") for line in lines)
    assert any(text in line for line in lines), lines


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wide", "features: 'view' is 32 wide, but the backbone's dims say 16"),
        ("mixed", "ragged against a loop over objects: 'view' differs by"),
        ("freezing", "freezes nothing: it freezes"),
    ],
)
def test_a_fault_of_an_encoder_is_named(plugin: None, name: str, text: str):
    with pytest.raises(ConformanceError) as caught:
        check_encoder(f"lab.{name}")
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"adapter lab.{name}: {text}") for line in lines), lines
