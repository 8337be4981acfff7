"""Ranks and what is counted from them, draws of views, and the public files: against hand-made examples and loops."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import DataError, label_ranks
from mvcore_duoduo.evaluation.files import (
    read_captions,
    read_classes,
    read_ids,
    read_labels,
    read_matrix,
    read_templates,
)
from mvcore_duoduo.evaluation.metrics import (
    cosine_ranks,
    discounted_gains,
    macro_samples,
    recalled,
    reciprocal_ranks,
)
from mvcore_duoduo.evaluation.subsets import view_subset
from mvcore_duoduo.evaluation.text_to_shape import pooled_samples


def test_a_table_of_four_queries_by_hand() -> None:
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # right answer 0: rank 0
            [0.9, 0.1, 0.2, 0.3],  # right answer 1: rank 3
            [0.5, 0.5, 0.5, 0.5],  # right answer 2, all equal: 0 and 1 stand before it
            [0.1, 0.8, 0.2, 0.7],  # right answer 3: rank 1
        ]
    )
    ranks = label_ranks(scores, torch.tensor([0, 1, 2, 3]))
    assert ranks.tolist() == [0, 3, 2, 1]
    assert float(recalled(ranks, 1).mean()) == 1 / 4
    assert float(recalled(ranks, 3).mean()) == 3 / 4
    assert float(reciprocal_ranks(ranks).mean()) == pytest.approx((1 + 1 / 4 + 1 / 3 + 1 / 2) / 4)
    by_hand = (1 + 1 / math.log2(4) + 1 / math.log2(3)) / 4
    assert float(discounted_gains(ranks, 3).mean()) == pytest.approx(by_hand)
    assert float(discounted_gains(ranks, 5).mean()) == pytest.approx(by_hand + 1 / math.log2(5) / 4)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_ranks_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    # Few different scores, so that most are tied.
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns)))
    target = data.draw(st.lists(st.integers(0, columns - 1), min_size=rows, max_size=rows))
    table = scores.double().view(rows, columns)
    ranks = label_ranks(table, torch.tensor(target))
    for row, own, rank in zip(table.tolist(), target, ranks.tolist(), strict=True):
        assert sorted(range(columns), key=lambda c: -row[c]).index(own) == rank


def test_cosine_ranks_hang_on_no_length_and_refuse_what_has_no_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(6, 4, generator=generator), torch.randn(5, 4, generator=generator)
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    ranks = cosine_ranks(queries, candidates, target)
    assert ranks.tolist() == cosine_ranks(7 * queries, candidates * torch.arange(1, 6)[:, None], target).tolist()
    cosines = torch.nn.functional.cosine_similarity(queries[:, None].double(), candidates[None].double(), dim=-1)
    assert ranks.tolist() == label_ranks(cosines, target).tolist()
    candidates[3] = 0
    with pytest.raises(ValueError, match="candidate 3 has no direction"):
        cosine_ranks(queries, candidates, target)


@pytest.mark.parametrize(("scores", "target"), [(torch.zeros(2, 3), [0, 3]), (torch.full((2, 3), math.nan), [0, 1])])
def test_what_cannot_be_ranked_is_refused(scores: torch.Tensor, target: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels must lie|NaN"):
        label_ranks(scores, torch.tensor(target))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
@settings(deadline=None)
def test_macro_is_the_mean_over_classes(objects: list[tuple[int, bool]]) -> None:
    labels = np.array([label for label, _ in objects])
    hits = np.array([float(hit) for _, hit in objects])
    shares = [np.mean([h for own, h in objects if own == label]) for label in sorted(set(labels.tolist()))]
    assert macro_samples(hits, labels).mean() == pytest.approx(np.mean(shares))


def test_samples_of_queries_average_to_the_mean_over_queries() -> None:
    samples = pooled_samples(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 0, 1, 3]), 4)
    assert samples.shape == (4,)
    assert samples.mean() == pytest.approx(3 / 5)


@given(st.integers(0, 9), st.text(max_size=5), st.integers(1, 12), st.integers(1, 12))
@settings(deadline=None)
def test_a_draw_is_a_set_of_its_own_views_and_repeats(seed: int, name: str, count: int, views: int) -> None:
    subset = view_subset(seed, name, count, views)
    assert list(subset) == sorted(set(subset))
    assert len(subset) == min(count, views)
    assert set(subset) <= set(range(views))
    assert view_subset(seed, name, count, views) == subset


def test_every_set_of_views_is_equally_likely() -> None:
    drawn = Counter(view_subset(seed, f"o{i}", 2, 4) for i in range(500) for seed in range(6))
    assert len(drawn) == 6
    expected = 3000 / 6
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 20.5  # chi2, 5 degrees of freedom, p = 0.001


def test_draws_differ_by_seed_name_and_count() -> None:
    assert len({view_subset(seed, "a", 6, 12) for seed in range(20)}) > 15
    assert len({view_subset(0, name, 6, 12) for name in "abcdefghijklmnopqrst"}) > 15
    nested = [set(view_subset(s, "a", 3, 12)) <= set(view_subset(s, "a", 6, 12)) for s in range(20)]
    assert not all(nested)


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("head", ["class_idx,class_name,uid", "idx,name,id", "id,idx,name"])
def test_labels_in_both_published_layouts(head: str, tmp_path: Path) -> None:
    rows = [
        {"class_idx": "1", "class_name": "sea lion", "uid": "u/1"},
        {"class_idx": "0", "class_name": "cow", "uid": "u2"},
    ]
    short = {"idx": "class_idx", "name": "class_name", "id": "uid"}
    lines = [",".join(row[short.get(key, key)] for key in head.split(",")) for row in rows]
    labels = read_labels(written(tmp_path / "x.csv", "\n".join([head, *lines, ""])))
    assert labels.ids == ("u_1", "u2")
    assert labels.numbers == (1, 0)
    assert labels.words == {1: "sea lion", 0: "cow"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("idx,name\n0,cow\n", "no column uid or id"),
        ("idx,name,id\nx,cow,a\n", "line 2: class number 'x'"),
        ("idx,name,id\n0,cow,a\n0,pig,b\n", "class 0 is 'pig' here and 'cow' before"),
        ("idx,name,id\n0,cow,a\n0,cow,a\n", "line 3: object 'a' stands twice"),
        ("idx,name,id\n0,cow\n", "line 2 has 2 columns"),
        ("idx,name,id\n", "names no object"),
        ('idx,name,id\n0,"cow,a\n', "is no CSV table"),
    ],
)
def test_labels_that_cannot_be_meant(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_labels(written(tmp_path / "x.csv", text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "cow\nsea lion\n\n"),
        ("c.txt", "1,sea lion\n0,cow\n"),
        ("c.csv", "idx,name\n1,sea lion\n0,cow\n"),
        ("c.csv", "class_idx,class_name,uid\n1,sea lion,a\n0,cow,b\n0,cow,c\n"),
    ],
)
def test_lists_of_classes(name: str, text: str, tmp_path: Path) -> None:
    assert read_classes(written(tmp_path / name, text)) == ["cow", "sea lion"]


def test_a_list_of_classes_with_a_gap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class has the number 1, though 2 is there"):
        read_classes(written(tmp_path / "c.txt", "0,cow\n2,pig\n"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.txt", "0_a\n7_b\n"),
        ("ids.csv", "idx,name,id\n0,x,0_a\n7,y,7/b\n"),
        ("ids.json", '{"0_a": 0, "7_b": 1}'),
        ("ids.json", '["0_a", "7_b"]'),
    ],
)
def test_lists_of_ids(name: str, text: str, tmp_path: Path) -> None:
    assert read_ids(written(tmp_path / name, text)) == ["0_a", "7_b"]


def test_captions_go_by_the_models_id_not_by_the_rows(tmp_path: Path) -> None:
    text = 'id,modelId,description,category\n0,m1,"a red, round  chair",Chair\n1,m2,,Table\n'
    assert read_captions(written(tmp_path / "c.csv", text)) == [("m1", "a red, round chair")]


def test_prompts_from_text_and_json(tmp_path: Path) -> None:
    assert read_templates(written(tmp_path / "t.txt", "a {}.\nthe {}.\n")) == ["a {}.", "the {}."]
    several = written(tmp_path / "t.json", '{"one": ["a {}"], "two": ["b {}", "c {}"]}')
    assert read_templates(f"{several}#two") == ["b {}", "c {}"]
    with pytest.raises(DataError, match=r"several lists \(one, two\); name one as t.json#KEY"):
        read_templates(several)
    with pytest.raises(DataError, match="must hold one"):
        read_templates(written(tmp_path / "u.txt", "no place\n"))


def test_a_matrix_is_plain_numbers_with_directions(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.eye(3, 4, dtype=np.float16))
    assert read_matrix(str(tmp_path / "m.npy")).dtype == np.float32
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"no \.npy file of plain numbers"):
        read_matrix(str(tmp_path / "p.npy"))
    np.save(tmp_path / "z.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match="row 0 has no direction"):
        read_matrix(str(tmp_path / "z.npy"))
    np.save(tmp_path / "v.npy", np.zeros(3, np.float32))
    with pytest.raises(DataError, match=r"must hold \(classes, width\)"):
        read_matrix(str(tmp_path / "v.npy"))
