"""Tracks in packed batches: joined, cut, moved and hidden like every other field of a view."""

from __future__ import annotations

import pytest
import torch
from mvcore.errors import PluginError
from mvcore.packing import concatenate, split_objects
from mvcore.testing.toy import ToyViews
from mvcore.training.slots import Received, Slots
from mvcore.types import Tracks, ViewBatch


def batch_of(counts: list[int], most: int, seed: int) -> ViewBatch:
    generator = torch.Generator().manual_seed(seed)
    tracks = Tracks.none(sum(counts), most)
    for n in range(sum(counts)):
        shown = int(torch.randint(most + 1, (), generator=generator))
        tracks.ids[n, :shown] = torch.arange(shown)
        tracks.points[n, :shown] = torch.rand(shown, 2, generator=generator)
        tracks.xyz[n, :shown] = torch.rand(shown, 3, generator=generator)
    return ViewBatch.make(counts, tracks=tracks)


def shown(batch: ViewBatch) -> list[list[tuple[float, ...]]]:
    """The points of each view: id, place in the image and in space."""
    tracks = batch.tracks
    if tracks is None:
        return [[] for _ in range(batch.n_views)]
    found: list[list[tuple[float, ...]]] = []
    for n in range(batch.n_views):
        rows = (tracks.ids[n] >= 0).nonzero()[:, 0].tolist()
        found.append([(int(tracks.ids[n, m]), *tracks.points[n, m].tolist(), *tracks.xyz[n, m].tolist()) for m in rows])
    return found


def test_batches_of_unequal_room_are_joined_and_cut_again() -> None:
    parts = [batch_of([2, 1], 3, 0), ViewBatch.make([2]), batch_of([1, 2], 5, 1), batch_of([1], 0, 2)]
    whole = concatenate(parts)
    assert whole.tracks is not None
    assert whole.tracks.ids.shape == (9, 5)
    assert shown(whole) == [view for part in parts for view in shown(part)]
    cut = split_objects(whole, 3)
    assert len(cut) > 2
    assert [view for part in cut for view in shown(part)] == shown(whole)
    assert concatenate([ViewBatch.make([1]), ViewBatch.make([2])]).tracks is None


@pytest.mark.parametrize("most", [4, 6000])
def test_workers_hand_tracks_over(most: int) -> None:
    """Small ones by value, large ones in shared memory."""
    batch = batch_of([2, 2], most, 3)
    received = Received().own(Slots(1, always_send=True).hold({"pairs": batch}))["pairs"]
    assert shown(received) == shown(batch)


def test_tracks_have_a_row_for_each_view() -> None:
    with pytest.raises(ValueError, match=r"tracks\.points has 3 rows"):
        ViewBatch.make([2], tracks=Tracks.none(3, 1))


def test_a_part_that_does_not_declare_tracks_cannot_read_them() -> None:
    batch = batch_of([2], 2, 0)
    assert batch.restricted(frozenset({"tracks"}), "loss").tracks is not None
    with pytest.raises(PluginError, match=r"reads batch\.tracks but does not declare 'tracks'"):
        _ = batch.restricted(frozenset({"depth"}), "loss").tracks


def test_the_toys_tracks_lie_on_what_its_views_show() -> None:
    """A point's depth is that of the pixel it falls into, to within what a pixel spans."""
    batch = ToyViews(64).load(1, [4, 5, 6], None)
    tracks, cameras = batch.tracks, batch.cameras
    assert tracks is not None
    assert cameras is not None
    assert batch.depth is not None
    shared = set(tracks.ids[0].tolist()) & set(tracks.ids[1].tolist()) - {-1}
    assert len(shared) > 10
    close = []
    for n, m in (tracks.ids >= 0).nonzero().tolist():
        z = cameras.world_to_camera[n, 2, :3] @ tracks.xyz[n, m] + cameras.world_to_camera[n, 2, 3]
        x, y = tracks.points[n, m].long().tolist()
        close.append(abs(float(batch.depth[n, y, x] - z)) < 0.05)
    assert sum(close) > 0.9 * len(close)  # at the outline a pixel's centre may be beside the ball
