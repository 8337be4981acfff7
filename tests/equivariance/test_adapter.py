"""`equivariance.dense` on CLIP: what it tunes, how it is saved, scaled and merged; it mixes with `ovt.lora`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mvcore.api import Adapter, ConfigError, ViewBatch, WeightsError
from mvcore.encoders.open_clip import OpenClip
from mvcore.model import Link, Pipeline
from mvcore_equivariance.adapter import DenseAdapter
from mvcore_ovt.lora import LoraAdapter
from torch import Tensor, nn

DENSE = frozenset({"dense"})
Make = Callable[..., OpenClip]
QV = [f"visual.transformer.resblocks.{i}.attn.in_proj_weight.{key}" for i in (3, 4) for key in "qv"]


def images(count: int = 2) -> ViewBatch:
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ViewBatch.make([count], images=pixels)


def attached(backbone: OpenClip, *adapters: Adapter) -> Pipeline:
    links = []
    for adapter in adapters or (DenseAdapter(last_blocks=2),):
        torch.manual_seed(1)
        adapter.attach(backbone)
        keys = DENSE if isinstance(adapter, DenseAdapter) else frozenset[str]()
        links.append(Link(type(adapter).__name__, adapter, keys, keys))
    return Pipeline(backbone, links)


def dense_of(pipeline: Pipeline) -> Tensor:
    with torch.no_grad():
        return pipeline(images(), DENSE).dense


def only(pipeline: Pipeline) -> Any:
    return pipeline.links[0].module


def trained(pipeline: Pipeline, steps: int = 3) -> None:
    """Optimizer steps that move every factor and the head."""
    optimizer = torch.optim.AdamW([p for p in pipeline.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        pipeline(images(), DENSE).dense.pow(2).mean().backward()
        optimizer.step()


def test_it_trains_the_factors_and_the_head_alone(small_clip: Make) -> None:
    pipeline = attached(small_clip())
    state = only(pipeline).trained_state()
    factors = [f"{name}.lora_{letter}" for name in QV for letter in "ab"]
    assert list(state) == [*factors, "head.weight", "head.bias"]
    assert state[factors[0]].shape == (4, 32)
    assert state[factors[1]].shape == (32, 4)
    before = {name: value.clone() for name, value in pipeline.named_parameters()}
    trained(pipeline)
    changed = {name for name, value in pipeline.named_parameters() if not torch.equal(value, before[name])}
    assert len(changed) == len(state)
    assert all(".parametrizations.in_proj_weight." in n or n.startswith("adapters.0.head") for n in changed)


@pytest.mark.parametrize("head", ["conv", "residual", "none"])
def test_strength_zero_is_the_backbones_own_map(small_clip: Make, head: Any) -> None:
    pipeline = attached(small_clip(), DenseAdapter(last_blocks=2, head=head))
    untouched = small_clip().encode(images(), DENSE)["dense"]
    assert torch.equal(dense_of(pipeline), untouched) == (head != "conv")
    trained(pipeline)
    tuned = dense_of(pipeline)
    assert not torch.allclose(tuned, untouched, atol=1e-3)
    only(pipeline).set_strength(0.0)
    assert torch.equal(dense_of(pipeline), untouched)
    only(pipeline).set_strength(0.5)
    assert 0 < float((dense_of(pipeline) - untouched).norm()) < float((tuned - untouched).norm())
    only(pipeline).set_strength(1.0)
    assert torch.equal(dense_of(pipeline), tuned)


@pytest.mark.parametrize("head", ["conv", "residual", "none"])
def test_merging_at_half_strength_keeps_the_map(small_clip: Make, head: Any) -> None:
    pipeline = attached(small_clip(), DenseAdapter(last_blocks=2, head=head))
    trained(pipeline)
    only(pipeline).set_strength(0.4)
    half = dense_of(pipeline)
    only(pipeline).merge()
    torch.testing.assert_close(dense_of(pipeline), half, atol=1e-5, rtol=1e-5)
    again = small_clip()
    again.model.load_state_dict(pipeline.backbone.model.state_dict())
    other = attached(again, DenseAdapter(last_blocks=2, head=head))
    if head != "none":
        only(other).load_trained_state(only(pipeline).trained_state())
    torch.testing.assert_close(dense_of(other), half, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["conv", "residual", "none"])
def test_merging_leaves_the_plain_library_and_the_head_beside(small_clip: Make, head: Any) -> None:
    pipeline = attached(small_clip(), DenseAdapter(last_blocks=2, head=head))
    trained(pipeline)
    tuned = dense_of(pipeline)
    assert only(pipeline).merge() == (head == "none")
    assert list(pipeline.backbone.model.state_dict()) == list(small_clip().model.state_dict())
    torch.testing.assert_close(dense_of(pipeline), tuned, atol=1e-5, rtol=1e-5)
    left = only(pipeline).trained_state()
    assert set(left) == (set() if head == "none" else {"head.weight", "head.bias"})
    again = small_clip()
    again.model.load_state_dict(pipeline.backbone.model.state_dict())
    other = attached(again, DenseAdapter(last_blocks=2, head=head))
    if head != "none":
        only(other).load_trained_state(left)
        assert set(only(other).trained_state()) == set(left)
    torch.testing.assert_close(dense_of(other), tuned, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_round_trips_bit_for_bit(small_clip: Make) -> None:
    pipeline = attached(small_clip())
    trained(pipeline)
    again = attached(small_clip())
    only(again).load_trained_state(only(pipeline).trained_state())
    assert torch.equal(dense_of(again), dense_of(pipeline))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 2}, "shape of .*in_proj_weight.q.lora_a is"),
        ({"last_blocks": 3}, "missing visual.transformer.resblocks.2"),
        ({"last_blocks": 1}, "unexpected visual.transformer.resblocks.3"),
        ({"head": "none"}, "unexpected head.bias"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(small_clip: Make, options: dict[str, Any], text: str) -> None:
    state = only(attached(small_clip())).trained_state()
    with pytest.raises(WeightsError, match=text):
        only(attached(small_clip(), DenseAdapter(**{"last_blocks": 2, **options}))).load_trained_state(state)


@pytest.mark.parametrize("first", ["ovt", "equivariance"])
def test_it_mixes_with_ovt_lora_on_the_same_weights(small_clip: Make, first: str) -> None:
    parts: list[Adapter] = [LoraAdapter(rank=2), DenseAdapter(last_blocks=2)]
    parts = parts if first == "ovt" else parts[::-1]
    pipeline = attached(small_clip(), *parts)
    ovt, own = (next(part for part in parts if isinstance(part, kind)) for kind in (LoraAdapter, DenseAdapter))
    head: Any = own.head
    trained(pipeline)
    plain = small_clip()
    with torch.no_grad():
        weights = dict(plain.model.named_parameters())
        for name, weight in weights.items():
            factors = ovt.trained_state()
            if f"{name}.lora_a" in factors:
                weight += 4.0 * factors[f"{name}.lora_b"] @ factors[f"{name}.lora_a"]
            for key, rows in (("q", slice(0, 32)), ("v", slice(64, 96))):
                factors = own.trained_state()
                if f"{name}.{key}.lora_a" in factors:
                    weight[rows] += factors[f"{name}.{key}.lora_b"] @ factors[f"{name}.{key}.lora_a"]
    expected = head(plain.encode(images(), DENSE)["dense"])
    tuned = dense_of(pipeline)
    torch.testing.assert_close(tuned, expected, atol=1e-5, rtol=1e-5)
    ovt.set_strength(0.0)
    without = dense_of(pipeline)
    ovt.set_strength(1.0)
    assert not torch.allclose(without, tuned, atol=1e-4)
    names = {f"{type(part).__name__}/{name}" for part in parts for name in part.trained_parameters()}
    assert len(names) == 2 * 5 + 2 * 4 + 2
    for part in parts:
        part.merge()
    assert list(plain.model.state_dict()) == list(pipeline.backbone.model.state_dict())
    torch.testing.assert_close(dense_of(pipeline), tuned, atol=1e-5, rtol=1e-5)


def test_what_it_cannot_tune_is_the_users_error(small_clip: Make) -> None:
    with pytest.raises(ConfigError, match=r"equivariance\.dense: last_blocks must be from 1 to 5, .*, got 6"):
        DenseAdapter(last_blocks=6).attach(small_clip())
    with pytest.raises(ConfigError, match=r"equivariance\.dense: rank must be from 1 to 32"):
        DenseAdapter(rank=33).attach(small_clip())
    blind: Any = nn.Linear(2, 2)
    blind.dims = {"view": 2}
    with pytest.raises(ConfigError, match="Linear gives no dense map"):
        DenseAdapter().attach(blind)
    blind.dims = {"dense": 2}
    with pytest.raises(ConfigError, match="does not tell where its attention is"):
        DenseAdapter().attach(blind)


def test_other_features_see_the_tuned_weights_and_not_the_head(small_clip: Make) -> None:
    pipeline, view = attached(small_clip()), frozenset({"view"})
    with torch.no_grad():
        before = pipeline(images(), view).view
        assert torch.equal(before, small_clip().encode(images(), view)["view"])
    trained(pipeline)
    with torch.no_grad():
        assert not torch.allclose(pipeline(images(), view).view, before, atol=1e-4)
