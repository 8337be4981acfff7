"""core.itc and core.siglip against naive loops in float64, and against open_clip's own losses where they agree."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import Features, ViewBatch
from mvcore.losses.itc import ImageTextContrastive
from mvcore.losses.siglip import SigmoidContrastive
from torch import Tensor

WORDS = ["cup", "red cup", "shoe", "lamp", "toy car"]


@st.composite
def batches(draw: st.DrawFn) -> ViewBatch:
    """Ragged objects with whole-object captions, view captions, both or none; words and objects may repeat."""
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    captions: list[str] = []
    owners: list[int] = []
    rows: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        for row in [-1, *range(start, start + count)]:
            for _ in range(draw(st.integers(0, 2))):
                captions.append(draw(st.sampled_from(WORDS)))
                owners.append(index)
                rows.append(row)
        start += count
    return ViewBatch.make(
        counts,
        captions=captions,
        caption_object=torch.tensor(owners, dtype=torch.int64),
        caption_view=torch.tensor(rows, dtype=torch.int64),
        object_ids=torch.tensor([draw(st.integers(-1, 2)) for _ in counts]),
    )


def features_for(batch: ViewBatch, seed: int, scale: float = 1.5, bias: float = -2.0, width: int = 4) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return Features(
        {
            "view": leaf(batch.n_views, width),
            "text": leaf(len(batch.captions), width),
            "logit_scale": torch.tensor(scale, dtype=torch.float64, requires_grad=True),
            "logit_bias": torch.tensor(bias, dtype=torch.float64, requires_grad=True),
        }
    )


def naive_pairs(batch: ViewBatch, same_caption: str, same_object: str) -> tuple[list[list[bool]], list[list[bool]]]:
    """positive[i][j] and counted[i][j], by the definition."""
    n, captions = batch.n_views, batch.captions
    object_of, owner, row = batch.object_of_view.tolist(), batch.caption_object.tolist(), batch.caption_view.tolist()
    ids = batch.object_ids.tolist()
    own = [[row[j] == i for j in range(len(captions))] for i in range(n)]
    described = [
        own[i] if any(own[i]) else [owner[j] == object_of[i] and row[j] < 0 for j in range(len(captions))]
        for i in range(n)
    ]
    positive = [list(line) for line in described]
    counted = [[True] * len(captions) for _ in range(n)]
    for i in range(n):
        words = {captions[j] for j in range(len(captions)) if described[i][j]}
        for j, caption in enumerate(captions):
            if caption in words and not described[i][j]:
                positive[i][j] = same_caption == "positive"
                counted[i][j] = same_caption != "mask"
    for i in range(n):
        for j in range(len(captions)):
            a, b = ids[object_of[i]], ids[owner[j]]
            same = object_of[i] == owner[j] or (a == b and a >= 0)
            if same_object == "mask" and same and not positive[i][j]:
                counted[i][j] = False
    return positive, counted


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def naive_itc(features: Features, batch: ViewBatch, same_caption: str, same_object: str) -> Tensor:
    positive, counted = naive_pairs(batch, same_caption, same_object)
    n, t = batch.n_views, len(batch.captions)
    logits = features.logit_scale.exp() * unit(features.view) @ unit(features.text).T
    views = [i for i in range(n) if any(positive[i])]
    texts = [j for j in range(t) if any(positive[i][j] for i in range(n))]
    total = features.view.sum() * 0 + features.text.sum() * 0 + features.logit_scale * 0
    if not views:
        return total
    for i in views:
        partition = torch.stack([logits[i, j].exp() for j in texts if counted[i][j]]).sum()
        hits = [j for j in texts if positive[i][j]]
        total = total - sum((logits[i, j] - partition.log()) / len(hits) for j in hits) / len(views) / 2
    for j in texts:
        partition = torch.stack([logits[i, j].exp() for i in views if counted[i][j]]).sum()
        hits = [i for i in views if positive[i][j]]
        total = total - sum((logits[i, j] - partition.log()) / len(hits) for i in hits) / len(texts) / 2
    return total


def naive_siglip(features: Features, batch: ViewBatch, same_caption: str, same_object: str) -> Tensor:
    positive, counted = naive_pairs(batch, same_caption, same_object)
    n, t = batch.n_views, len(batch.captions)
    logits = features.logit_scale.exp() * unit(features.view) @ unit(features.text).T + features.logit_bias
    views = [i for i in range(n) if any(positive[i])]
    texts = [j for j in range(t) if any(positive[i][j] for i in range(n))]
    total = logits.sum() * 0
    for i in views:
        for j in texts:
            if counted[i][j]:
                sign = 1 if positive[i][j] else -1
                total = total + (1 + (-sign * logits[i, j]).exp()).log() / len(views)
    return total


def gradients(loss: Tensor, features: Features) -> list[Tensor]:
    keys = sorted(features)
    found = torch.autograd.grad(loss, [features[key] for key in keys], allow_unused=True)
    return [torch.zeros_like(features[k]) if g is None else g for k, g in zip(keys, found, strict=True)]


MODES = st.sampled_from(["positive", "negative", "mask"])
OBJECT_MODES = st.sampled_from(["negative", "mask"])


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(0, 999), MODES, OBJECT_MODES)
def test_itc_is_the_naive_loop_in_value_and_gradient(
    batch: ViewBatch, seed: int, same_caption: str, same_object: str
) -> None:
    features = features_for(batch, seed)
    loss = ImageTextContrastive(same_caption=same_caption, same_object=same_object)(features, batch)["loss"]
    expected = naive_itc(features, batch, same_caption, same_object)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-9, atol=1e-9)
    for got, want in zip(gradients(loss, features), gradients(expected, features), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(0, 999), MODES, OBJECT_MODES)
def test_siglip_is_the_naive_loop_in_value_and_gradient(
    batch: ViewBatch, seed: int, same_caption: str, same_object: str
) -> None:
    features = features_for(batch, seed)
    loss = SigmoidContrastive(same_caption=same_caption, same_object=same_object)(features, batch)
    expected = naive_siglip(features, batch, same_caption, same_object)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-9, atol=1e-9)
    for got, want in zip(gradients(loss, features), gradients(expected, features), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def one_to_one(n: int, order: list[int] | None = None) -> ViewBatch:
    order = order or list(range(n))
    return ViewBatch.make(
        [1] * n,
        captions=[f"object {i}" for i in range(n)],
        caption_object=torch.tensor(order),
        caption_view=torch.full((n,), -1),
    )


def plain(view: Tensor, text: Tensor, scale: float, bias: float = 0.0) -> Features:
    values = {"view": view, "text": text, "logit_scale": torch.tensor(scale), "logit_bias": torch.tensor(bias)}
    return Features(values)


def test_one_caption_a_view_is_open_clips_loss() -> None:
    torch.manual_seed(0)
    view, text = torch.randn(6, 8), torch.randn(6, 8)
    found = ImageTextContrastive()(plain(view, text, 3.0), one_to_one(6))["loss"]
    expected = open_clip.ClipLoss()(unit(view), unit(text), torch.tensor(3.0).exp())
    torch.testing.assert_close(found, expected)


def test_one_caption_a_view_is_open_clips_sigmoid_loss() -> None:
    torch.manual_seed(0)
    view, text = torch.randn(6, 8), torch.randn(6, 8)
    found = SigmoidContrastive()(plain(view, text, 2.0, -10.0), one_to_one(6))
    expected = open_clip.loss.SigLipLoss()(unit(view), unit(text), torch.tensor(2.0).exp(), torch.tensor(-10.0))
    torch.testing.assert_close(found, expected)


def test_equal_embeddings_give_ln_n() -> None:
    same = torch.ones(16, 4)
    assert ImageTextContrastive()(plain(same, same, 2.0), one_to_one(16))["loss"].item() == pytest.approx(2.772589)


def test_a_joint_permutation_changes_nothing() -> None:
    torch.manual_seed(1)
    view, text, order = torch.randn(7, 5), torch.randn(7, 5), torch.randperm(7)
    straight = ImageTextContrastive()(plain(view, text, 2.0), one_to_one(7))["loss"]
    moved = ImageTextContrastive()(plain(view[order], text[order], 2.0), one_to_one(7))["loss"]
    captions_only = ImageTextContrastive()(plain(view, text[order], 2.0), one_to_one(7, order.tolist()))["loss"]
    torch.testing.assert_close(moved, straight)
    torch.testing.assert_close(captions_only, straight)


def test_the_mask_removes_exactly_the_pairs_of_equal_words() -> None:
    batch = ViewBatch.make(
        [1, 1, 1],
        captions=["a cup", "a cup", "a shoe"],
        caption_object=torch.tensor([0, 1, 2]),
        caption_view=torch.full((3,), -1),
    )
    view, text = torch.eye(3), torch.eye(3)
    features = plain(view, text, 0.0)
    both = 2 * math.log(1 + math.exp(-1)) + math.log(1 + 2 * math.exp(-1))
    assert ImageTextContrastive(same_caption="mask")(features, batch)["loss"].item() == pytest.approx(
        both / 3, rel=1e-5
    )
    alone = math.log(1 + 2 * math.exp(-1))
    kept = ImageTextContrastive(same_caption="negative")(features, batch)["loss"].item()
    assert kept == pytest.approx(alone, rel=1e-5)


def test_without_captions_the_loss_is_zero_and_trains_nothing() -> None:
    batch = ViewBatch.make([2, 1])
    for loss in (ImageTextContrastive(), SigmoidContrastive()):
        features = features_for(batch, 0)
        result = loss(features, batch)
        value = result["loss"] if isinstance(result, dict) else result
        assert value.item() == 0
        value.backward()
        assert bool((features.view.grad == 0).all())  # pyright: ignore


def test_the_scale_is_limited_and_can_come_back() -> None:
    torch.manual_seed(0)
    view, text = torch.randn(5, 6), torch.randn(5, 6)
    at_limit = ImageTextContrastive()(plain(view, text, math.log(100)), one_to_one(5))["loss"]
    features = plain(view, text, 7.0)
    features.logit_scale.requires_grad_()
    beyond = ImageTextContrastive()(features, one_to_one(5))["loss"]
    torch.testing.assert_close(beyond, at_limit)
    beyond.backward()
    assert features.logit_scale.grad is not None
    assert features.logit_scale.grad.item() != 0
    free = ImageTextContrastive(max_scale=None)(features, one_to_one(5))["loss"]
    assert free.item() > beyond.item()


def test_accuracy_counts_any_caption_of_the_view() -> None:
    batch = ViewBatch.make(
        [1, 1],
        captions=["a", "b", "c"],
        caption_object=torch.tensor([0, 0, 1]),
        caption_view=torch.full((3,), -1),
    )
    view = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    assert ImageTextContrastive()(plain(view, text, 1.0), batch)["accuracy"].item() == 0.5
