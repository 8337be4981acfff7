"""Acceptance A28 and A30: what is left of a view after decoding, and what a collapsed head can reach."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvc_oracles import vectors
from mvcore.evaluation import consistency
from mvcore_mvc_heads import reconstruction, rms_distance
from torch.nn.functional import normalize


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 7), dim=st.integers(1, 6))
def test_a28_the_figures_are_their_definitions(seed: int, rows: int, dim: int) -> None:
    original, decoded = vectors(seed, rows, dim), vectors(seed + 1, rows, dim)
    found = reconstruction(original, decoded)
    assert found.mse == pytest.approx(float(torch.nn.functional.mse_loss(decoded, original)))
    distances = [float((a - b).norm()) for a, b in zip(original, decoded, strict=True)]
    assert found.mean_l2 == pytest.approx(sum(distances) / rows)
    assert found.rms_l2 == pytest.approx(math.sqrt(sum(d * d for d in distances) / rows))
    assert found.rms_l2 == pytest.approx(math.sqrt(dim * found.mse))
    assert found.mean_l2 <= found.rms_l2 * (1 + 1e-9)
    energy = float(original.square().sum()) / rows
    assert found.relative == pytest.approx(found.rms_l2 / math.sqrt(energy))


def test_a28_the_authors_reconstruction_loss_as_a_distance() -> None:
    """0.17 is a mean over elements: a distance of 9.3 to vectors that are 10 to 11 long."""
    assert rms_distance(0.17, 512) == pytest.approx(9.33, abs=5e-3)


def test_nothing_is_left_or_all_of_it() -> None:
    original = vectors(0, 4, 6)
    whole = reconstruction(original, original)
    assert (whole.mse, whole.mean_l2, whole.relative) == (0, 0, 0)
    assert whole.cosine == pytest.approx([1] * 4)
    nothing = reconstruction(original, torch.zeros_like(original))
    assert nothing.relative == pytest.approx(1)
    assert nothing.cosine == pytest.approx([0] * 4)
    assert math.isnan(reconstruction(torch.zeros(2, 3), torch.ones(2, 3)).relative)
    with pytest.raises(ValueError, match=r"must both be \(N, D\), not \(4, 6\) and \(4, 5\)"):
        reconstruction(original, original[:, :5])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a30_one_direction_for_all_reaches_the_length_of_the_mean_text_at_most(seed: int) -> None:
    text = vectors(seed, 6, 5)
    mean = normalize(text, dim=1).mean(dim=0)
    for direction in (vectors(seed + 1, 5), mean):
        found = consistency(text, direction.expand(6, 3, 5).clone())
        assert found.same_object.mean == pytest.approx(1)
        assert found.different_object.mean == pytest.approx(1)
        assert found.text_to_image.mean <= float(mean.norm()) + 1e-9
    assert found.text_to_image.mean == pytest.approx(float(mean.norm()))
