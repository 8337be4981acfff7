"""The keys of a source's sampling: shares of a run's batch, and what does not go together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.config import RunConfig, SourcePart
from mvcore.config_layers import Layers, parse_yaml
from mvcore.errors import ConfigError


def config(data: str, run: str = "{}") -> RunConfig:
    layers = Layers()
    text = f"encoder: {{id: core.open_clip}}\nlosses: {{core.itc: null}}\ndata: {data}\nrun: {run}"
    layers.merge(*parse_yaml(text, "run.yaml"))
    return layers.config()


def refused(data: str, run: str = "{}") -> str:
    with pytest.raises(ConfigError) as caught:
        config(data, run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_shares_a_source_has_a_batch_of_its_own():
    found = config("{a: {id: x.y}, b: {id: x.y, batch_size: 7}, c: {id: x.y, views_per_batch: 100}}")
    assert found.batch_sizes() == {"a": 64, "b": 7, "c": None}


def test_shares_divide_the_batch_of_the_run():
    data = "{four: {id: x.y, share: 4}, mvimgnet: {id: x.y, share: 1}, own: {id: x.y, batch_size: 9}}"
    assert config(data, "{batch_size: 500}").batch_sizes() == {"four": 400, "mvimgnet": 100, "own": 9}
    data = "{a: {id: x.y, share: 0.5}, b: {id: x.y, share: 0.25}, c: {id: x.y, share: 0.25}}"
    assert config(data, "{batch_size: 10}").batch_sizes() == {"a": 5, "b": 3, "c": 2}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=6), st.integers(200, 5000))
def test_shares_use_the_whole_batch_to_within_one_row(shares: list[float], batch: int) -> None:
    data = "{" + ", ".join(f"s{k}: {{id: x.y, share: {share!r}}}" for k, share in enumerate(shares)) + "}"
    sizes: Any = list(config(data, f"{{batch_size: {batch}}}").batch_sizes().values())
    assert sum(sizes) == batch
    for size, share in zip(sizes, shares, strict=True):
        assert abs(size - batch * share / sum(shares)) < 1


@pytest.mark.parametrize(
    ("data", "run", "text"),
    [
        ("{a: {id: x.y, share: 1}}", "{}", "data.a.share: say what is shared, with run.batch_size"),
        ("{a: {id: x.y}}", "{batch_size: 8}", "run.batch_size: no source has a share of it"),
        (
            "{a: {id: x.y, share: 1}, b: {id: x.y, share: 100}}",
            "{batch_size: 8}",
            "data.a.share: nothing of run.batch_size 8 falls to it",
        ),
        ("{a: {id: x.y, share: 0}}", "{batch_size: 8}", "share: input should be greater than 0"),
    ],
)
def test_shares_that_cannot_be_meant(data: str, run: str, text: str) -> None:
    assert text in refused(data, run)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("batch_size: 8, share: 1", "batch_size and share do not go together"),
        ("views_per_batch: 8, share: 1", "views_per_batch and share do not go together"),
        ("views_per_batch: 8, balance: category", "views_per_batch and balance: category do not go together"),
        (
            "views_draw: indices, short_objects: take_all",
            "short_objects: take_all and views_draw: indices do not go together",
        ),
        ("sampling: views, outlier_share: 0.2, balance: object", "outlier_share and balance: object do not go"),
        ("outlier_share: 0.2", "outlier_share is for sampling: views, and this source has sampling: objects"),
        ("sampling: views, views_per_batch: 9", "views_per_batch is for sampling: objects, and this source has"),
        ("sampling: views, pair_angle: [0, 90]", "pair_angle is for sampling: pairs"),
        ("sampling: pairs, pair_angle: [90, 20]", "pair_angle: must be a range [low, high] in degrees, from 0 to 180"),
        ("sampling: pairs, pair_angle: [0, 200]", "less than or equal to 180"),
        ("sampling: views, outlier_share: 1.0", "outlier_share: input should be less than 1"),
        ("balance: categroy", "balance: input should be 'none', 'object' or 'category'"),
    ],
)
def test_keys_that_contradict_each_other_are_one_line_with_their_place(keys: str, text: str) -> None:
    found = refused(f"{{a: {{id: x.y, {keys}}}}}", "{batch_size: 99}" if "share: 1" in keys else "{}")
    assert "data.a" in found
    assert text in found


def test_what_is_printed_is_read_again():
    data = (
        "{a: {id: x.y, sampling: pairs, pair_angle: [0, 120], pair_covisibility: 0.1, share: 2}, "
        "b: {id: x.y, views_per_object: [1, 6], views_draw: indices, views_per_batch: 800}}"
    )
    found = config(data, "{batch_size: 10}")
    layers = Layers()
    layers.merge(found.to_plain(), "again")
    assert layers.config() == found


PAGE = (Path(__file__).parents[2] / "docs/data/sampling.md").read_text(encoding="utf-8")


def test_the_page_has_every_key_with_its_default():
    table = PAGE.partition("## Keys of a source")[2].partition("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", table, re.M))
    fields = {
        name: info.default for name, info in SourcePart.model_fields.items() if name not in ("id", "args", "readers")
    }
    assert rows == {
        name: default if isinstance(default, str) else json.dumps(default) for name, default in fields.items()
    }


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
def test_what_the_page_shows_is_a_configuration(block: str):
    layers = Layers()
    layers.merge(*parse_yaml("encoder: {id: core.open_clip}\nlosses: {core.itc: null}", "base"))
    shown = parse_yaml(block, "page")
    layers.merge(*shown if "data" in shown[0] else ({"data": shown[0]}, "page"))
    sizes = layers.config().batch_sizes()
    if "# 1600 and 400" in block:
        assert list(sizes.values()) == [1600, 400]
