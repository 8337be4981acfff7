"""Another way through a backbone's blocks shares the prefix with the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mvcore.api import ConfigError, DataError, ViewBatch
from mvcore.encoders.across_views import ViewSegments
from mvcore.encoders.open_clip import OpenClip
from torch import Tensor

COUNTS = [2, 1, 3]


@pytest.fixture
def clip(tiny_clip_json: Path) -> OpenClip:
    torch.manual_seed(0)
    return OpenClip(model=str(tiny_clip_json)).eval()


def batch() -> ViewBatch:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return ViewBatch.make(COUNTS, images=images)


def mean_across(stages: Any, tokens: Tensor, batch: ViewBatch) -> Tensor:
    views = ViewSegments(batch.view_counts.tolist(), batch.device)
    return views.mean(stages.finish(stages.run(tokens, 1, 2, views)))


def calls_of(clip: OpenClip) -> list[int]:
    """Counts how often each block runs."""
    counts = [0, 0]
    for index, block in enumerate(clip.clip.visual.transformer.resblocks):
        block.register_forward_pre_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    return counts


def test_both_ways_in_one_pass_run_the_prefix_once(clip: OpenClip) -> None:
    plain = clip.encode(batch(), frozenset({"view"}))["view"]
    clip.add_branch("object", 1, mean_across)
    assert clip.dims["object"] == clip.dims["view"] == 16
    alone = clip.encode(batch(), frozenset({"object"}))["object"]
    counts = calls_of(clip)
    both = clip.encode(batch(), frozenset({"object", "view", "dense"}) - {"dense"})
    assert counts == [1, 2]
    torch.testing.assert_close(both["view"], plain, atol=1e-6, rtol=0)
    assert torch.equal(both["object"], alone)
    assert both["object"].shape == (3, 16)
    # The object with one view is that view's own vector; the others are no mere means.
    torch.testing.assert_close(alone[1], plain[2], atol=1e-6, rtol=0)
    assert (alone[0] - plain[:2].mean(0)).abs().max() > 1e-4


def test_known_tokens_stand_for_the_prefix_and_its_images(clip: OpenClip) -> None:
    stages: list[Any] = []

    def run(found: Any, tokens: Tensor, batch: ViewBatch) -> Tensor:
        stages.append((found, tokens))
        return mean_across(found, tokens, batch)

    clip.add_branch("object", 1, run, known=lambda batch: batch.state.get("tokens"))
    expected = clip.encode(batch(), frozenset({"object"}))["object"]
    counts = calls_of(clip)
    known = ViewBatch.make(COUNTS).with_state({"tokens": stages[0][1]})
    assert torch.equal(clip.encode(known, frozenset({"object"}))["object"], expected)
    assert counts == [0, 1]
    with pytest.raises(DataError, match="makes object from images; there are none"):
        clip.encode(ViewBatch.make(COUNTS), frozenset({"object"}))


def test_a_frozen_prefix_keeps_no_graph(clip: OpenClip) -> None:
    seen: list[bool] = []

    def run(stages: Any, tokens: Tensor, batch: ViewBatch) -> Tensor:
        seen.append(tokens.requires_grad)
        return mean_across(stages, tokens, batch)

    clip.add_branch("object", 1, run)
    clip.set_trainable("last:1")
    assert clip.encode(batch(), frozenset({"object"}))["object"].requires_grad
    assert seen == [False]


def test_there_must_be_such_a_block(clip: OpenClip) -> None:
    with pytest.raises(ConfigError, match="block 3 is not one of its vision blocks 0 to 1"):
        clip.add_branch("object", 3, mean_across)
