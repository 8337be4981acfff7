"""The zero-shot classifier and top-k accuracy, against open_clip and against loops."""

from __future__ import annotations

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.evaluation.options import ZeroShotOptions
from mvcore.evaluation.zero_shot import (
    build_classifier,
    label_ranks,
    openai_templates,
    zero_shot_logits,
)
from pydantic import ValidationError
from torch import Tensor


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(16, vision, text).eval()  # pyright: ignore[reportArgumentType]


def test_templates_are_the_80_of_open_clip() -> None:
    ours = [template("axolotl") for template in openai_templates()]
    assert len(ours) == 80
    assert ours == [template("axolotl") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert ours[0] == "a bad photo of a axolotl."


@pytest.mark.parametrize("texts_per_batch", [7, 256])
def test_classifier_equals_open_clips(clip: open_clip.CLIP, texts_per_batch: int) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    classes = ["missile", "teapot", "fire engine", "missile"]

    def encode_text(texts: list[str]) -> Tensor:
        assert len(texts) <= texts_per_batch
        with torch.no_grad():
            return clip.encode_text(tokenizer(texts))

    ours = build_classifier(encode_text, classes, openai_templates(), texts_per_batch=texts_per_batch)
    theirs = open_clip.build_zero_shot_classifier(clip, tokenizer, classes, open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert ours.shape == (16, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.norm(dim=0), torch.ones(4))
    torch.testing.assert_close(ours[:, 0], ours[:, 3])


def test_string_templates_and_functions_are_the_same(clip: open_clip.CLIP) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)

    def encode_text(texts: list[str]) -> Tensor:
        with torch.no_grad():
            return clip.encode_text(tokenizer(texts))

    a = build_classifier(encode_text, ["cup"], ["a photo of a {}.", "{}"])
    b = build_classifier(encode_text, ["cup"], [lambda c: f"a photo of a {c}.", lambda c: c])
    torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="needs classes and templates, not 0 and 1"):
        build_classifier(encode_text, [], ["{}"])


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), classes=st.integers(1, 9), levels=st.integers(1, 5), seed=st.integers(0, 999))
def test_topk_equals_sorting_by_hand(n: int, classes: int, levels: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    # Few levels make many ties; of equal logits the lower index stands first.
    logits = torch.randint(0, levels, (n, classes), generator=rng).float()
    labels = torch.randint(0, classes, (n,), generator=rng)
    ranks = label_ranks(logits, labels)
    found = {k: float((ranks < k).double().mean()) for k in (1, 3, 5)}
    for k, value in found.items():
        hits = 0
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            best = sorted(range(classes), key=lambda c: (-row[c], c))[:k]
            hits += label in best
        assert value == pytest.approx(hits / n)
    assert found[1] <= found[3] <= found[5]
    assert found[1] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_accuracy_hangs_on_neither_batches_nor_order() -> None:
    rng = torch.Generator().manual_seed(0)
    views, classifier = torch.randn(40, 8, generator=rng), torch.randn(8, 6, generator=rng)
    labels = torch.randint(0, 6, (40,), generator=rng)
    ranks = label_ranks(zero_shot_logits(views, classifier), labels)
    pieces = torch.cat(
        [label_ranks(zero_shot_logits(v, classifier), b) for v, b in zip(views.split(7), labels.split(7), strict=True)]
    )
    assert torch.equal(ranks, pieces)
    order = torch.randperm(40, generator=rng)
    assert torch.equal(label_ranks(zero_shot_logits(views[order], classifier), labels[order]), ranks[order])


def test_logits_are_cosines_times_100() -> None:
    views = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(zero_shot_logits(views, torch.eye(2)), torch.tensor([[60.0, 80.0]]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), r"logits must be \(N, C\)"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"labels must lie in 0\.\.1"),
        (torch.zeros(2, 2), torch.tensor([-1, 0]), r"labels must lie in 0\.\.1"),
        (torch.full((1, 2), torch.nan), torch.tensor([0]), "NaN"),
    ],
)
def test_wrong_input_is_named(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_ranks(logits, labels)


@pytest.mark.parametrize("template", ["a photo", "a {0} {1}", "{name}", "{"])
def test_templates_without_a_place_are_refused(template: str) -> None:
    with pytest.raises(ValidationError, match=r"must hold one \{\}"):
        ZeroShotOptions(templates=(template,))
