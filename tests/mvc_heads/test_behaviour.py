"""Acceptance A29: what the heads do to vectors about one direction, as the authors' figures show it for CLIP's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mvcore.evaluation import consistency
from mvcore_mvc_heads import MLPHead, contrastive_loss, object_similarity_loss
from torch import Tensor

WIDTH = 192


def cone() -> tuple[Tensor, Tensor]:
    """(96, D) texts and (96, 36, D) views, whose cosines are about 0.89 and 0.71."""
    from conftest import Cone

    made = Cone(96, 36, WIDTH)
    return torch.from_numpy(made.texts).float(), torch.from_numpy(made.images).float()


def measured(text: Tensor, views: Tensor) -> tuple[float, float, float]:
    found = consistency(text, views)
    return found.same_object.mean, found.different_object.mean, found.text_to_image.mean


def trained(loss: Any, text: Tensor, views: Tensor, steps: int) -> MLPHead:
    """Full batches, 6 views of each object drawn anew each step."""
    torch.manual_seed(0)
    head = MLPHead(WIDTH)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    rows = torch.arange(len(views))[:, None]
    for _ in range(steps):
        drawn = views[rows, torch.rand(views.shape[:2]).topk(6, dim=1).indices]
        optimizer.zero_grad()
        loss(text, head(drawn)).backward()
        optimizer.step()
    return head.eval()


@pytest.fixture(scope="module")
def halves() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out objects about the same direction."""
    text, views = cone()
    return (text[:64], views[:64]), (text[64:], views[64:])


def test_a29_the_vectors_are_as_clips(halves: Any) -> None:
    same, different, matched = measured(*halves[1])
    assert same == pytest.approx(0.893, abs=0.03)
    assert different == pytest.approx(0.707, abs=0.04)
    assert 0.1 < matched < 0.5


@pytest.mark.parametrize(("loss", "steps"), [(object_similarity_loss, 200), (contrastive_loss, 200)])
def test_a29_the_object_head_collapses_and_the_contrastive_head_overfits(halves: Any, loss: Any, steps: int) -> None:
    (text, views), (test_text, test_views) = halves
    before = measured(test_text, test_views)
    with torch.no_grad():
        head = trained_head(loss, text, views, steps)
        on_training, on_test = measured(text, head(views)), measured(test_text, head(test_views))
    assert on_training[0] > 0.95
    if loss is object_similarity_loss:
        assert on_test[1] > before[1] + 0.1  # objects that it has not seen become alike
    else:
        assert abs(on_training[1]) < 0.1
        assert on_test[1] > 0.25  # what drives training objects apart does not reach others
        assert on_test[2] < before[2] - 0.05  # and their texts are lost


def trained_head(loss: Any, text: Tensor, views: Tensor, steps: int) -> MLPHead:
    with torch.enable_grad():
        return trained(loss, text, views, steps)
