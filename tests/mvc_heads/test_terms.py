"""The losses as parts of a run: ragged view counts, any number of captions, and what has no loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvc_oracles import (
    Item,
    across,
    batch_of,
    features_of,
    gradient,
    inside,
    ragged_items,
    ragged_mean,
    vectors,
)
from mvcore.api import DataError, Features, PluginError, ViewBatch
from mvcore_mvc_heads import autoencoder_loss, contrastive_loss, object_similarity_loss
from mvcore_mvc_heads.config import ContrastiveOptions, InfoNCEOptions, ObjectOptions
from mvcore_mvc_heads.terms import Autoencoding, Contrastive, InfoNCE, ObjectSimilarity
from pydantic import ValidationError
from torch import Tensor

layouts = st.lists(st.integers(1, 4), min_size=1, max_size=5).flatmap(
    lambda counts: st.tuples(
        st.just(counts), st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=6), st.integers(0, 2**31)
    )
)


def given_items(layout: tuple[list[int], list[int], int]) -> tuple[ViewBatch, Tensor, Tensor, list[Item]]:
    counts, owners, seed = layout
    batch = batch_of(counts, owners)
    views, texts = vectors(seed, sum(counts), 5).requires_grad_(), vectors(seed + 1, len(owners), 5)
    return batch, views, texts, ragged_items(views, texts, batch)


def is_text(pair: tuple[Item, Item]) -> int:
    return sum(item[1] == "text" for item in pair)


def positives(items: list[Item]) -> list[tuple[Item, Item]]:
    """Without two captions of one object: a constant."""
    return [pair for pair in inside(items) if is_text(pair) < 2]


def close(found: dict[str, Tensor], key: str, expected: Tensor, views: Tensor) -> None:
    torch.testing.assert_close(found[key], expected, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(gradient(found[key], views), gradient(expected + 0 * views.sum(), views))


@settings(max_examples=25, deadline=None)
@given(layout=layouts)
def test_ragged_objects_with_any_captions_equal_the_loop(layout: Any) -> None:
    batch, views, texts, items = given_items(layout)
    features = features_of(batch, view=views, text=texts)
    positive, negative = ragged_mean(positives(items), batch), ragged_mean(across(items), batch)
    found = Contrastive(similarity_weight=0.3)(features, batch)
    close(found, "positive", positive, views)
    close(found, "negative", negative, views)
    close(found, "loss", 0.7 * negative - 0.3 * positive, views)
    close(ObjectSimilarity()(features, batch), "loss", -positive, views)


@settings(max_examples=25, deadline=None)
@given(layout=layouts)
def test_ragged_pairs_of_the_figure_equal_the_loop(layout: Any) -> None:
    batch, views, texts, items = given_items(layout)
    features = features_of(batch, view=views, text=texts)
    by_object = sorted(items, key=lambda item: item[0])
    drawn = across(by_object, lambda a, b: b[1] == "view")
    found = Contrastive(cross_pairs="figure")(features, batch)
    close(found, "negative", ragged_mean(drawn, batch), views)


@settings(max_examples=15, deadline=None)
@given(layout=layouts, weight=st.sampled_from([0.0, 0.25, 1.0]))
def test_an_explicit_weight_of_the_text(layout: Any, weight: float) -> None:
    batch, views, texts, items = given_items(layout)
    if weight < 1 and batch.max_views < 2:
        return
    features = features_of(batch, view=views, text=texts)
    parts = {
        what: [ragged_mean([p for p in pairs if is_text(p) == texts_in], batch) for texts_in in (0, 1)]
        for what, pairs in (("positive", inside(items)), ("negative", across(items)))
    }
    found = Contrastive(text_weight=weight)(features, batch)
    for what, (of_views, of_texts) in parts.items():
        close(found, what, (1 - weight) * of_views + weight * of_texts, views)
    if weight == 0:
        without = Contrastive(text_weight=0.0)(features_of(batch, view=views), batch_of(batch.counts))
        torch.testing.assert_close(found["loss"], without["loss"])


def test_equal_counts_are_the_functions() -> None:
    text, views = vectors(0, 4, 6), vectors(1, 4, 3, 6)
    batch = batch_of([3] * 4, range(4))
    features = features_of(batch, view=views.flatten(0, 1), text=text)
    torch.testing.assert_close(ObjectSimilarity()(features, batch)["loss"], object_similarity_loss(text, views))
    for normalise in ("mean", "reference"):
        found = Contrastive(normalise=normalise)(features, batch)["loss"]
        torch.testing.assert_close(found, contrastive_loss(text, views, normalise=normalise))
        decoded, invariant = vectors(2, 4, 3, 6), vectors(3, 4, 3, 2)
        named = features_of(
            batch,
            mvc_heads__original=views.flatten(0, 1),
            mvc_heads__decoded=decoded.flatten(0, 1),
            mvc_heads__invariant=invariant.flatten(0, 1),
        )
        found = Autoencoding(similarity_weight=0.3, reconstruction_weight=0.7, normalise=normalise)(named, batch)
        expected = autoencoder_loss(
            views, decoded, invariant, similarity_weight=0.3, reconstruction_weight=0.7, normalise=normalise
        )
        torch.testing.assert_close(found["loss"], expected)
        assert set(found) == {"loss", "reconstruction", "positive", "negative"}


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=5).filter(lambda c: max(c) > 1), seed=st.integers(0, 99))
def test_ragged_encodings_equal_the_loop(counts: list[int], seed: int) -> None:
    batch, encoded = batch_of(counts), vectors(seed, sum(counts), 3).requires_grad_()
    original, decoded = vectors(seed + 1, sum(counts), 5), vectors(seed + 2, sum(counts), 5)
    features = features_of(
        batch, mvc_heads__original=original, mvc_heads__decoded=decoded, mvc_heads__invariant=encoded
    )
    items = [(int(i), "view", view) for i, view in zip(batch.object_of_view, encoded, strict=True)]
    found = Autoencoding()(features, batch)
    close(found, "positive", ragged_mean(inside(items), batch), encoded)
    close(found, "negative", ragged_mean(across(items), batch), encoded)
    torch.testing.assert_close(found["reconstruction"], (original - decoded).norm(dim=1).mean())


def test_the_softmax_contrast_takes_texts_or_leaves_them() -> None:
    batch = batch_of([2, 1, 3], [0, 2])
    views, texts = vectors(0, 6, 5).requires_grad_(), vectors(1, 2, 5).requires_grad_()
    with_texts = InfoNCE()(features_of(batch, view=views, text=texts), batch)
    without = InfoNCE(texts=False)(features_of(batch, view=views), batch_of([2, 1, 3]))
    assert not torch.isclose(with_texts, without)
    with_texts.backward()
    assert texts.grad is None
    assert InfoNCEOptions(texts=False).needs() == {"view"}
    assert InfoNCEOptions().needs() == {"view", "text", "captions"} == ObjectOptions().needs()
    assert ContrastiveOptions(text_weight=0.0).needs() == {"view"}


@pytest.mark.parametrize("term", [ObjectSimilarity(), Contrastive(), InfoNCE()])
def test_a_batch_without_captions_is_refused_in_one_line(term: torch.nn.Module) -> None:
    batch = batch_of([2, 2])
    with pytest.raises(DataError, match=r"mvc_heads\.\w+: a batch without any caption; .*, or set text"):
        term(features_of(batch, view=vectors(0, 4, 5), text=torch.zeros(0, 5)), batch)


@pytest.mark.parametrize(
    "term", [ObjectSimilarity(text_weight=0.0), Contrastive(text_weight=0.5), InfoNCE(texts=False), Autoencoding()]
)
def test_objects_of_one_view_alone_are_refused_in_one_line(term: torch.nn.Module) -> None:
    batch = batch_of([1, 1], [0, 1])
    values = {key: vectors(0, 2, 5) for key in ("view", "text", "mvc_heads__original", "mvc_heads__decoded")}
    features = features_of(batch, **values, mvc_heads__invariant=vectors(1, 2, 3))
    with pytest.raises(DataError, match=r"every object of a batch has one view.* set the source's views_per_object"):
        term(features, batch)


def test_one_object_is_defined_by_the_linear_losses_and_refused_by_the_softmax() -> None:
    batch = batch_of([4], [0])
    features = features_of(batch, view=vectors(0, 4, 5).requires_grad_(), text=vectors(1, 1, 5))
    found = Contrastive()(features, batch)
    assert float(found["negative"].detach()) == 0
    torch.testing.assert_close(found["loss"], -0.5 * found["positive"])
    with pytest.raises(DataError, match=r"mvc_heads\.infonce: a batch of one object .* raise batch_size"):
        InfoNCE()(features, batch)


def test_texts_of_another_width_are_refused_in_one_line() -> None:
    batch = batch_of([2, 2], [0, 1])
    features = features_of(batch, view=vectors(0, 4, 5), text=vectors(1, 2, 7))
    for term in (ObjectSimilarity(), Contrastive(), InfoNCE()):
        with pytest.raises(DataError, match="views are 5 wide and texts 7, so they have no cosine"):
            term(features, batch)


def test_they_read_no_more_than_they_declare() -> None:
    batch = batch_of([2, 2], [0, 1])
    features = Features({"view": vectors(0, 4, 5), "text": vectors(1, 2, 5)})
    needs = ContrastiveOptions(text_weight=0.0).needs()
    term = Contrastive(text_weight=0.0)
    term(features.restricted(needs, "loss"), batch.restricted(needs, "loss"))
    with pytest.raises(PluginError, match="captions"):
        Contrastive()(features.restricted(needs, "loss"), batch.restricted(needs, "loss"))


@pytest.mark.parametrize("options", [{"normalise": "reference"}, {"cross_pairs": "figure"}])
def test_two_weightings_at_once_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="it goes with normalise: mean and cross_pairs: all"):
        ContrastiveOptions(text_weight=0.5, **options)


@pytest.mark.parametrize(
    "options", [{"similarity_weight": 1.1}, {"similarity_weight": -0.1}, {"weight_similarity": 0.5}, {"normalise": "x"}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ContrastiveOptions(**options)
