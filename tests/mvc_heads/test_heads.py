"""Acceptance A1-A3, A15, A16: the networks, and the authors' weights in them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvc_oracles import vectors
from mvcore.api import WeightsError
from mvcore_mvc_heads import MLPHead, ViewAutoencoder
from mvcore_mvc_heads.heads import Perceptron
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("invariant_encoder", "dependent_encoder", "invariant_decoder", "dependent_decoder")


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def widths(part: Any) -> list[int]:
    return [part.linears[0].in_features, *(linear.out_features for linear in part.linears)]


def test_a1_the_head() -> None:
    torch.manual_seed(0)
    head = MLPHead(512)
    assert parameters(head) == 787_968
    assert widths(head.layers) == [512, 512, 512, 512]
    x = vectors(0, 20, 512, dtype=torch.float32)
    found = head(x)
    a, b, c = head.layers.linears
    torch.testing.assert_close(found, c(F.relu(b(F.relu(a(x))))))
    assert not torch.allclose(found, x, atol=0.1)
    assert (found > 0).any()
    assert (found < 0).any()
    assert torch.equal(head(x.view(4, 5, 512)), found.view(4, 5, 512))


def test_the_head_in_other_shapes() -> None:
    head = MLPHead(12, hidden=7, hidden_layers=3)
    assert widths(head.layers) == [12, 7, 7, 7, 12]
    for bad in ({"dim": 0}, {"dim": 3, "hidden": 0}, {"dim": 3, "hidden_layers": 0}):
        with pytest.raises(ValueError, match="must be at least 1, not 0"):
            MLPHead(**bad)


def test_a2_the_authors_autoencoder() -> None:
    torch.manual_seed(0)
    network = ViewAutoencoder(512, variant="reference")
    assert parameters(network) == 1_708_288
    for part in PARTS:
        expected = [512, 512, 256, 128] if part.endswith("encoder") else [128, 256, 512, 512]
        assert widths(getattr(network, part)) == expected
    found = network(vectors(0, 9, 512, dtype=torch.float32))
    assert [each.shape[-1] for each in found] == [512, 128, 512, 512]
    for output in found:
        assert (output >= 0).all()
        assert (output > 0).any()


@pytest.mark.parametrize("dim", [640, 768, 1024, 37])
def test_a3_any_width_with_linear_outputs(dim: int) -> None:
    torch.manual_seed(0)
    network = ViewAutoencoder(dim, bottleneck=50)
    found = network(vectors(0, 2, 3, dim, dtype=torch.float32))
    assert [tuple(each.shape) for each in found] == [(2, 3, dim), (2, 3, 50), (2, 3, dim), (2, 3, dim)]
    for output in found:
        assert (output < 0).any()
    assert widths(network.invariant_encoder)[0] == dim
    assert widths(network.invariant_encoder)[-1] == 50


@pytest.mark.parametrize(("dim", "bottleneck", "named"), [(768, 128, 768), (512, 100, 100)])
def test_widths_that_the_authors_network_cannot_have_are_refused(dim: int, bottleneck: int, named: int) -> None:
    with pytest.raises(ValueError, match=f"powers of two as widths, not {named}; use 'linear'"):
        ViewAutoencoder(dim, bottleneck, "reference")


@pytest.mark.parametrize("bad", [{"variant": "relu"}, {"branch_dropout": 1.5}, {"bottleneck": 0}])
def test_wrong_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"must be .*{next(iter(bad.values()))}"):
        ViewAutoencoder(16, **bad)


@pytest.mark.parametrize("drop_in_eval", [False, True])
def test_a15_the_branch_is_dropped_in_training_and_with_the_flag_in_eval(drop_in_eval: bool) -> None:
    network = ViewAutoencoder(16, 4, branch_dropout=1.0, drop_in_eval=drop_in_eval)
    x = vectors(0, 5, 16, dtype=torch.float32)
    found = network.train()(x)
    assert torch.equal(found.decoded, found.decoded_invariant)
    found = network.eval()(x)
    whole = found.decoded_invariant + found.decoded_dependent
    assert torch.equal(found.decoded, found.decoded_invariant if drop_in_eval else whole)


def test_the_branch_is_dropped_as_often_as_asked_for_the_whole_batch() -> None:
    torch.manual_seed(0)
    network = ViewAutoencoder(8, 2, branch_dropout=0.3).train()
    x = vectors(0, 5, 8, dtype=torch.float32)
    dropped = 0
    for _ in range(400):
        found = network(x)
        rows = (found.decoded == found.decoded_invariant).all(dim=1)
        assert rows.all() or not rows.any()
        dropped += bool(rows.all())
    assert 90 <= dropped <= 150
    without = ViewAutoencoder(8, 2)
    state = torch.get_rng_state()
    without(x)
    assert torch.equal(state, torch.get_rng_state())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a16_what_a_relu_at_the_end_cannot_do(seed: int) -> None:
    torch.manual_seed(seed)
    network = ViewAutoencoder(32, 8, "reference")
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)
    x = vectors(seed, 12, 32, dtype=torch.float32)
    found = network(x)
    floor = x.clamp(max=0).square().mean()
    assert (x - found.decoded).square().mean() >= floor
    assert (x - found.decoded_invariant).square().mean() >= floor
    unit = F.normalize(found.decoded_invariant, dim=1)
    assert (unit @ unit.T >= -1e-6).all()


def theirs(sizes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights under the authors' names: each part is a sequence `model` of `linear0`, `linear1`, ..."""
    found: dict[str, Tensor] = {}
    seed = itertools.count()
    for part, numbers in sizes.items():
        for i, (a, b) in enumerate(itertools.pairwise(numbers)):
            found[f"{part}model.linear{i}.weight"] = vectors(next(seed), b, a, dtype=torch.float32) / a**0.5
            found[f"{part}model.linear{i}.bias"] = vectors(next(seed), b, dtype=torch.float32)
    return found


def run(weights: dict[str, Tensor], part: str, x: Tensor, *, relu_last: bool) -> Tensor:
    """Their network by its weights."""
    for i in range(3):
        x = F.linear(x, weights[f"{part}model.linear{i}.weight"], weights[f"{part}model.linear{i}.bias"])
        x = F.relu(x) if i < 2 or relu_last else x
    return x


@pytest.mark.parametrize("prefix", ["", "net."])
def test_weights_of_the_authors_head(prefix: str) -> None:
    weights = theirs({"": [512, 512, 512, 512]})
    head = MLPHead(512)
    head.load_released({f"{prefix}{key}": value for key, value in weights.items()})
    x = vectors(9, 3, 512, dtype=torch.float32)
    torch.testing.assert_close(head(x), run(weights, "", x, relu_last=False))


def test_weights_of_the_authors_autoencoder() -> None:
    down, up = [512, 512, 256, 128], [128, 256, 512, 512]
    names = {f"view_{part}.": down if part.endswith("encoder") else up for part in PARTS}
    weights = theirs(names)
    network = ViewAutoencoder(512, variant="reference")
    network.load_released({f"net.{key}": value for key, value in weights.items()})
    x = vectors(9, 3, 512, dtype=torch.float32)
    found = network(x)
    shared = run(weights, "view_invariant_encoder.", x, relu_last=True)
    torch.testing.assert_close(found.invariant, shared)
    mine = run(weights, "view_invariant_decoder.", shared, relu_last=True)
    rest = run(weights, "view_dependent_encoder.", x, relu_last=True)
    torch.testing.assert_close(found.decoded, mine + run(weights, "view_dependent_decoder.", rest, relu_last=True))


def test_weights_that_do_not_fit_are_named_and_change_nothing() -> None:
    weights = theirs({"": [8, 8, 8, 8]})
    head = MLPHead(8)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    missing = {key: value for key, value in weights.items() if key != "model.linear1.bias"}
    for state, said in (
        (missing, "no key ends in 'model.linear1.bias'"),
        ({**weights, **{f"other.{key}": value for key, value in weights.items()}}, "2 keys end in"),
        (theirs({"": [8, 8, 8, 8, 8]}), "they hold 8 of layers where it has 6"),
        (theirs({"": [8, 9, 9, 8]}), r"'model.linear0.weight' is \(9, 8\), not \(8, 8\)"),
        ({}, "no key ends in"),
    ):
        with pytest.raises(WeightsError, match=said):
            head.load_released(state)
        assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


def test_a_perceptron_of_one_layer_is_linear() -> None:
    part = Perceptron([3, 2])
    x = vectors(0, 4, 3, dtype=torch.float32)
    assert torch.equal(part(x), part.linears[0](x))
