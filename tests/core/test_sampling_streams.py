"""Streams: objects in an order of their own, taken once, and taken up again where a run stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mvcore.errors import ConfigError, DataError
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification, StreamSampler, assign_offsets
from mvcore.types import ViewBatch


class Numbers:
    """Objects 0 to n - 1, each with 1 to 3 views whose pixels are its number."""

    provides = frozenset({"images"})
    image_size = 8

    def __init__(self, n: int) -> None:
        self.n = n
        self.at = 0

    def __iter__(self) -> Iterator[ViewBatch]:
        while self.at < self.n:
            number, self.at = self.at, self.at + 1
            images = torch.full((1 + number % 3, 3, 8, 8), number, dtype=torch.uint8)
            yield ViewBatch.make([len(images)], images=images)
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def source(stream: Any, **changes: Any) -> SourceSpecification:
    return SourceSpecification(**{"name": "a", "dataset": stream, "batch_size": 3, **changes})


def loader(n: int = 7, **changes: Any) -> StepLoader:
    return StepLoader([source(Numbers(n))], **{"seed": 0, "steps": 4, **changes})


def numbers(batch: dict[str, ViewBatch]) -> list[int]:
    rows = batch["a"]
    assert rows.images is not None
    assert rows.view_ids.tolist() == [-1] * rows.n_views
    firsts = rows.cu_views[:-1].long()
    return rows.images[firsts, 0, 0, 0].tolist()


def test_objects_come_in_the_streams_order_and_begin_again():
    assert [numbers(batch) for batch in loader(n=7)] == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_goes_on_where_it_stopped_although_the_loader_was_ahead(stop: int):
    whole = [numbers(batch) for _, batch in zip(range(4), loader(), strict=False)]
    first = loader()
    ahead = iter(first)
    for _ in range(stop + 1):  # Lightning asks for one batch more than it has used
        next(ahead)
    first.position = stop
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert [numbers(batch) for batch in second] == whole[stop:]


def test_what_only_an_index_can_follow_is_refused():
    for key, value in {"sampling": "pairs", "views_per_object": 2, "balance": "object", "outlier_share": 0.5}.items():
        with pytest.raises(ConfigError, match=f"data.a: {key} needs a dataset with an index, and Numbers is a stream"):
            StreamSampler(source(Numbers(3), **{key: value}))
    with pytest.raises(ConfigError, match=r"data\.a: a stream is read in the training process; set run\.workers to 0"):
        loader(workers=1)
    with pytest.raises(ConfigError, match=r"say what an epoch is with run\.epoch_steps"):
        StreamSampler(source(Numbers(3))).steps_per_epoch  # noqa: B018
    with pytest.raises(DataError, match=r"data\.a: the stream holds no object"):
        list(loader(n=0))


def test_a_stream_has_no_ids_and_takes_none_from_others():
    assert assign_offsets([Numbers(3)]) == ([(0, 0)], 0, 0)  # type: ignore[list-item]
