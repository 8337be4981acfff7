"""Acceptance A13: the contrast of objects with images and texts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mvcore.api import DataError, Features, ViewBatch
from mvcore_duoduo import contrastive, shape_contrastive
from mvcore_duoduo.losses import ShapeImage, ShapeText
from mvcore_duoduo.scale import LogScaleAdapter
from torch import Tensor


def rows(seed: int, count: int = 8, width: int = 16) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loop(one: Tensor, other: Tensor, scale: float) -> float:
    """The closed form, entry by entry."""
    n = len(one)
    z = [
        [
            scale * sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) / (float(x.norm()) * float(y.norm()))
            for y in other
        ]
        for x in one
    ]
    total = 0.0
    for i in range(n):
        total += math.log(sum(math.exp(z[i][j]) for j in range(n))) - z[i][i]
        total += math.log(sum(math.exp(z[j][i]) for j in range(n))) - z[i][i]
    return total / (2 * n)


def test_the_closed_form() -> None:
    for log_scale in (0.0, math.log(14.28)):
        found = contrastive(rows(1), rows(2), torch.tensor(log_scale, dtype=torch.float64))
        assert float(found) == pytest.approx(by_loop(rows(1), rows(2), math.exp(log_scale)), abs=1e-10)


def test_it_is_symmetric_and_blind_to_norms() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64)
    value = contrastive(rows(1), rows(2), scale)
    torch.testing.assert_close(contrastive(rows(2), rows(1), scale), value)
    torch.testing.assert_close(contrastive(rows(1) * torch.arange(1, 9)[:, None], 0.1 * rows(2), scale), value)


def test_aligned_orthonormal_pairs() -> None:
    n, scale = 8, math.log(14.28)
    found = contrastive(torch.eye(n), torch.eye(n), torch.tensor(scale))
    assert float(found) == pytest.approx(math.log(1 + (n - 1) * math.exp(-math.exp(scale))), abs=1e-6)


def test_two_terms_share_one_scale_and_leave_targets_alone() -> None:
    shape, image, text = (rows(seed).requires_grad_() for seed in (1, 2, 3))
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    total = shape_contrastive(shape, image, text, scale, image_weight=0.5, text_weight=2.0)
    parts = 0.5 * contrastive(shape, image, scale) + 2.0 * contrastive(shape, text, scale)
    torch.testing.assert_close(total, parts)
    total.backward()
    assert image.grad is None
    assert text.grad is None
    assert scale.grad is not None
    assert float(scale.grad) != 0


def test_rows_that_do_not_count_are_as_if_absent() -> None:
    counted = torch.tensor([True, False, True, True, False, True, True, True])
    scale = torch.tensor(1.0, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for masked in (True, False):
        one, other = rows(1).requires_grad_(), rows(2).requires_grad_()
        pair = (one, other) if masked else (one[counted], other[counted])
        value = contrastive(*pair, scale, counted if masked else None)
        found.append([value, *torch.autograd.grad(value, (one, other))])
    for with_mask, without in zip(*found, strict=True):
        torch.testing.assert_close(with_mask, without, atol=1e-12, rtol=0)
    nothing = contrastive(rows(1).requires_grad_(), rows(2), scale, torch.zeros(8, dtype=torch.bool))
    assert float(nothing.detach()) == 0
    assert float(contrastive(rows(1, 0), rows(2, 0), scale)) == 0


def test_the_released_start() -> None:
    scale = LogScaleAdapter()
    assert float(scale.log_scale.exp()) == pytest.approx(14.28, abs=0.01)
    assert float(LogScaleAdapter(start=5.0).log_scale) == pytest.approx(math.log(5), abs=1e-6)


def features(**values: Tensor) -> Features:
    axes: Any = {"object": "object", "duoduo.image_target": "object", "duoduo.log_scale": "none", "text": "caption"}
    return Features({key.replace("duoduo_", "duoduo."): value for key, value in values.items()}, axes=axes)


def test_the_image_term_is_the_contrast() -> None:
    scale = torch.tensor(1.5, dtype=torch.float64)
    given = features(object=rows(1), duoduo_image_target=rows(2), duoduo_log_scale=scale)
    out = ShapeImage()(given, ViewBatch.make([1] * 8))
    torch.testing.assert_close(out["loss"], contrastive(rows(1), rows(2), scale))
    nearest = torch.nn.functional.normalize(rows(1)) @ torch.nn.functional.normalize(rows(2)).T
    assert float(out["accuracy"]) == pytest.approx(float((nearest.argmax(1) == torch.arange(8)).double().mean()))


def test_the_text_term_takes_the_mean_of_an_objects_captions_and_leaves_out_objects_without() -> None:
    scale, text = torch.tensor(1.5, dtype=torch.float64), rows(3, 5)
    owners = torch.tensor([0, 2, 2, 2, 3])
    batch = ViewBatch.make(
        [1, 2, 3, 1], captions=list("abcde"), caption_object=owners, caption_view=torch.tensor([-1, 3, 4, 5, -1])
    )
    out = ShapeText()(features(object=rows(1, 4), text=text, duoduo_log_scale=scale), batch)
    targets = torch.stack([text[0], text[1:4].mean(0), text[4]])
    torch.testing.assert_close(out["loss"], contrastive(rows(1, 4)[[0, 2, 3]], targets, scale))


def test_a_batch_without_captions_is_refused() -> None:
    given = features(object=rows(1, 2), text=rows(2, 0), duoduo_log_scale=torch.tensor(1.0))
    with pytest.raises(DataError, match=r"shape_text: a batch without any caption; give the source captions"):
        ShapeText()(given, ViewBatch.make([1, 1]))


def test_a_limit_holds_the_scale_but_not_its_gradient() -> None:
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    given = features(object=rows(1), duoduo_image_target=rows(2), duoduo_log_scale=scale)
    loss = ShapeImage(max_scale=100.0)(given, ViewBatch.make([1] * 8))["loss"]
    torch.testing.assert_close(loss, contrastive(rows(1), rows(2), torch.tensor(math.log(100), dtype=torch.float64)))
    loss.backward()
    assert scale.grad is not None
    assert float(scale.grad) != 0


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(8, 16\) and \(7, 16\)"):
        contrastive(rows(1), rows(2, 7), torch.tensor(1.0))
