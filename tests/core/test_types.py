"""The packed batch and the features: layout, captions, what a part may read, and joining of batches."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.errors import PluginError
from mvcore.packing import concatenate, split_objects
from mvcore.types import Cameras, Features, ViewBatch

# --- make --------------------------------------------------------------------------------------------------


def test_the_layout_is_made_from_the_view_counts():
    batch = ViewBatch.make([2, 1, 3])
    assert batch.object_of_view.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.cu_views.tolist() == [0, 2, 3, 6]
    assert (batch.cu_views.dtype, batch.object_of_view.dtype) == (torch.int32, torch.int64)
    assert (batch.n_objects, batch.n_views, batch.max_views) == (3, 6, 3)
    assert type(batch.max_views) is int  # known on the host: no step has to wait for the device
    assert batch.object_ids.tolist() == [-1] * 3
    assert batch.view_ids.tolist() == [-1] * 6
    assert batch.source.tolist() == [0] * 3
    assert batch.captions == ()


def test_a_batch_may_be_empty():
    batch = ViewBatch.make([])
    assert (batch.n_objects, batch.n_views, batch.max_views) == (0, 0, 0)
    assert batch.cu_views.tolist() == [0]
    assert batch.positives().shape == (0, 0)


def test_none_means_absent_for_every_optional_field():
    batch = ViewBatch.make([1], captions=None, caption_object=None, caption_view=None, images=None, cameras=None)
    assert (batch.captions, batch.caption_object.tolist(), batch.caption_view.tolist()) == ((), [], [])


def _captions(objects: list[int], views: list[int]) -> dict[str, Any]:
    texts = [f"caption {i}" for i in range(len(objects))]
    return {"captions": texts, "caption_object": torch.tensor(objects), "caption_view": torch.tensor(views)}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"images": torch.zeros(4, 3, 2, 2, dtype=torch.uint8)}, "images has 4 rows where the batch's layout says 3"),
        ({"source": torch.zeros(3)}, "source has 3 rows"),
        ({"object_ids": torch.zeros(1)}, "object_ids has 1 rows"),
        ({"view_ids": torch.zeros(2)}, "view_ids has 2 rows"),
        ({"depth": torch.zeros(2, 4, 4)}, "depth has 2 rows"),
        ({"masks": torch.zeros(2, 4, 4)}, "masks has 2 rows"),
        ({"camera_valid": torch.zeros(2)}, "camera_valid has 2 rows"),
        ({"cameras": Cameras(torch.zeros(2, 3, 3), torch.zeros(3, 4, 4))}, "intrinsics has 2 rows"),
        ({"cameras": Cameras(torch.zeros(3, 3, 3), torch.zeros(2, 4, 4))}, "world_to_camera has 2 rows"),
        ({"embeddings": {"clip/image": torch.zeros(2, 4)}}, "embeddings['clip/image'] has 2 rows"),
        ({"embeddings": {"clip/text": torch.zeros(3, 4)}}, "embeddings['clip/text'] has 3 rows"),
        ({"captions": ["a"]}, "a batch with captions needs caption_object"),
        ({"captions": ["a"], "caption_object": torch.tensor([0])}, "a batch with captions needs caption_view"),
        (_captions([0, 2], [-1, -1]), "caption_object must be in 0 .. 1, got [0, 2]"),
        (_captions([-1], [-1]), "caption_object must be in 0 .. 1, got [-1]"),
        (_captions([0], [3]), "caption_view must be in -1 .. 2, got [3]"),
        (_captions([0], [-2]), "caption_view must be in -1 .. 2, got [-2]"),
        (_captions([0], [2]), "caption_view [2] names views of other objects than [0]"),
    ],
)
def test_a_field_that_does_not_fit_the_layout_is_refused(values, text):
    with pytest.raises(ValueError) as caught:
        ViewBatch.make([2, 1], **values)
    assert text in str(caught.value)


@pytest.mark.parametrize("counts", [[1, 0], [-1]])
def test_an_object_without_views_is_refused(counts):
    with pytest.raises(ValueError, match="at least one view"):
        ViewBatch.make(counts)


# --- captions ------------------------------------------------------------------------------------------------


def naive_positives(batch: ViewBatch) -> list[list[bool]]:
    """The definition, view by view: its own captions, or its object's where it has none of its own."""
    table = []
    for row, owner in enumerate(batch.object_of_view.tolist()):
        own = [view == row for view in batch.caption_view.tolist()]
        whole = [
            view == -1 and thing == owner
            for view, thing in zip(batch.caption_view.tolist(), batch.caption_object.tolist(), strict=True)
        ]
        table.append(own if any(own) else whole)
    return table


def test_positives_of_a_small_case():
    batch = ViewBatch.make([2, 1], **_captions([0, 0, 1, 0], [-1, 1, -1, 1]))
    assert batch.positives().tolist() == [
        [True, False, False, False],  # view 0 has no caption of its own: its object's
        [False, True, False, True],  # view 1 has two of its own, and they hide the object's
        [False, False, True, False],
    ]


@st.composite
def batches(draw: st.DrawFn, image_sides: tuple[int, ...] = (2, 3)) -> ViewBatch:
    """A ragged batch whose optional fields are there or not."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    n = sum(counts)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    side = draw(st.sampled_from(image_sides))
    owners = [i for i, count in enumerate(counts) for _ in range(count)]
    rows = draw(st.lists(st.integers(-1, n - 1), max_size=5))
    objects = [owners[row] if row >= 0 else draw(st.integers(0, len(counts) - 1)) for row in rows]
    values: dict[str, Any] = {
        "object_ids": torch.randint(0, 99, (len(counts),), generator=generator),
        "view_ids": torch.randint(0, 99, (n,), generator=generator),
        "source": torch.randint(0, 3, (len(counts),), generator=generator),
        "captions": [f"{draw(st.integers(0, 9))}" for _ in rows],
        "caption_object": torch.tensor(objects, dtype=torch.int64),
        "caption_view": torch.tensor(rows, dtype=torch.int64),
    }
    if draw(st.booleans()):
        values["images"] = torch.randint(0, 255, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    if draw(st.booleans()):
        values["masks"] = torch.rand(n, side, side, generator=generator) > 0.5
    if draw(st.booleans()):
        values["depth"] = torch.rand(n, side, side, generator=generator)
    if draw(st.booleans()):
        values["depth_valid"] = torch.rand(n, generator=generator) > 0.5
    if draw(st.booleans()):
        cameras = torch.rand(n, 3, 3, generator=generator), torch.rand(n, 4, 4, generator=generator)
        values["cameras"] = Cameras(*cameras)
    if draw(st.booleans()):
        values["camera_valid"] = torch.rand(n, generator=generator) > 0.5
    tags = draw(st.sets(st.sampled_from(["a", "b"])))
    widths = {tag: draw(st.sampled_from([2, 3])) for tag in sorted(tags)}
    values["embeddings"] = {f"{tag}/image": torch.rand(n, widths[tag], generator=generator) for tag in widths}
    state = draw(st.sets(st.sampled_from(["p.object", "p.view"])))
    lengths = {"p.object": len(counts), "p.view": n}
    values["state"] = {key: torch.rand(lengths[key], 2, generator=generator) for key in sorted(state)}
    return ViewBatch.make(counts, **values)


@given(batches())
@settings(max_examples=60, deadline=None)
def test_positives_equal_the_definition(batch):
    assert batch.positives().tolist() == naive_positives(batch)


# --- concatenate -----------------------------------------------------------------------------------------------


def views_of(batch: ViewBatch) -> list[dict[str, Any]]:
    """Each view with all that belongs to it, told without any index into the batch."""
    found = []
    for row, owner in enumerate(batch.object_of_view.tolist()):
        cameras, depth = batch.cameras, batch.depth
        camera_known = cameras is not None and (batch.camera_valid is None or bool(batch.camera_valid[row]))
        depth_known = depth is not None and (batch.depth_valid is None or bool(batch.depth_valid[row]))
        texts = zip(batch.captions, batch.caption_object.tolist(), batch.caption_view.tolist(), strict=True)
        found.append(
            {
                "ids": (int(batch.object_ids[owner]), int(batch.view_ids[row]), int(batch.source[owner])),
                "texts": [(text, view == row) for text, thing, view in texts if thing == owner],
                "camera": cameras.intrinsics[row].tolist() if camera_known and cameras is not None else None,
                "pose": cameras.world_to_camera[row].tolist() if camera_known and cameras is not None else None,
                "depth": depth[row].tolist() if depth_known and depth is not None else None,
            }
        )
    return found


def shared_rows(parts: list[ViewBatch], read: Any) -> list[Any] | None:
    """The rows of a field that every part has in the same width, else None."""
    tensors = [read(part) for part in parts]
    if any(tensor is None for tensor in tensors) or len({tensor.shape[1:] for tensor in tensors}) > 1:
        return None
    return [row for tensor in tensors for row in tensor.tolist()]


@given(st.lists(batches(image_sides=(2,)), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_concatenation_keeps_every_view_with_what_belongs_to_it(parts):
    joined = concatenate(parts)
    joined._check_lengths()
    joined._check_captions()
    assert views_of(joined) == [view for part in parts for view in views_of(part)]
    again = ViewBatch.make([count for part in parts for count in part.view_counts.tolist()])
    for name in ("view_counts", "object_of_view", "cu_views"):
        assert torch.equal(getattr(joined, name), getattr(again, name))
        assert getattr(joined, name).dtype == getattr(again, name).dtype
    assert (joined.max_views, joined.n_views) == (again.max_views, again.n_views)


@given(st.lists(batches(), min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_concatenation_keeps_a_field_that_all_share_and_no_other(parts):
    joined = concatenate(parts)
    for read in (lambda b: b.images, lambda b: b.masks):
        tensor, rows = read(joined), shared_rows(parts, read)
        assert (None if tensor is None else tensor.tolist()) == rows
    sizes = {part.depth.shape[1:] for part in parts if part.depth is not None}
    assert (joined.depth is None) == ((len(parts) > 1 and len(sizes) != 1) or not sizes)
    for name in ("embeddings", "state"):
        keys = {key for part in parts for key in getattr(part, name)}
        expected = {key: shared_rows(parts, lambda b, k=key, n=name: getattr(b, n).get(k)) for key in keys}
        found = {key: tensor.tolist() for key, tensor in getattr(joined, name).items()}
        assert found == {key: rows for key, rows in expected.items() if rows is not None}


def test_concatenation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to concatenate"):
        concatenate([])


# --- split_objects ---------------------------------------------------------------------------------------------


@given(batches(), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_chunks_are_whole_objects_within_the_limit_and_as_few_as_that_allows(batch, limit):
    chunks = split_objects(batch, limit)
    counts = [chunk.view_counts.tolist() for chunk in chunks]
    assert [count for chunk in counts for count in chunk] == batch.view_counts.tolist()
    assert all(sum(chunk) <= limit or len(chunk) == 1 for chunk in counts)
    assert all(sum(chunk) + after[0] > limit for chunk, after in itertools.pairwise(counts))


@given(batches(), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_splitting_keeps_every_view_with_what_belongs_to_it(batch, limit):
    chunks = split_objects(batch, limit)
    for chunk in chunks:
        chunk._check_lengths()
        chunk._check_captions()
    assert [view for chunk in chunks for view in views_of(chunk)] == views_of(batch)


@given(batches(), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_joining_the_chunks_gives_the_batch(batch, limit):
    joined = concatenate(split_objects(batch, limit))
    for name in ("view_counts", "object_of_view", "cu_views", "source", "object_ids", "view_ids", "images", "masks"):
        mine, theirs = getattr(joined, name), getattr(batch, name)
        assert (mine is None) == (theirs is None)
        assert mine is None or (torch.equal(mine, theirs) and mine.dtype == theirs.dtype)
    assert (joined.max_views, joined.n_views) == (batch.max_views, batch.n_views)
    assert {key: value.tolist() for key, value in joined.embeddings.items()} == {
        key: value.tolist() for key, value in batch.embeddings.items()
    }
    assert (joined.cameras is None, joined.depth is None) == (batch.cameras is None, batch.depth is None)


def test_text_embeddings_stay_with_their_captions():
    texts = torch.arange(6.0).reshape(3, 2)
    batch = ViewBatch.make([1, 2], **_captions([1, 0, 1], [-1, 0, 2]), embeddings={"clip/text": texts})
    first, second = split_objects(batch, 1)
    assert (first.captions, first.embeddings["clip/text"].tolist()) == (("caption 1",), [[2.0, 3.0]])
    assert (second.captions, second.caption_view.tolist()) == (("caption 0", "caption 2"), [-1, 1])
    assert second.embeddings["clip/text"].tolist() == [[0.0, 1.0], [4.0, 5.0]]


def test_only_a_batch_on_the_host_is_split():
    with pytest.raises(ValueError, match="split on the host"):
        split_objects(ViewBatch.make([1, 1]).to("meta"), 1)


# --- moving and state -------------------------------------------------------------------------------------------


@given(batches())
@settings(max_examples=20, deadline=None)
def test_moving_moves_every_tensor(batch):
    moved = batch.to("meta")
    for name, value in vars(batch).items():
        other = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert (other.device.type, other.shape, other.dtype) == ("meta", value.shape, value.dtype)
        elif isinstance(value, Cameras):
            assert other.intrinsics.device.type == other.world_to_camera.device.type == "meta"
        elif isinstance(value, dict):
            assert {key: tensor.device.type for key, tensor in other.items()} == dict.fromkeys(value, "meta")
        else:
            assert other == value
    assert moved.device.type == "meta"


def test_state_is_added_to_a_copy():
    batch = ViewBatch.make([1], state={"a.x": torch.zeros(1)})
    more = batch.with_state({"b.y": torch.ones(1)})
    assert set(batch.state) == {"a.x"}
    assert set(more.state) == {"a.x", "b.y"}


# --- what a part may read --------------------------------------------------------------------------------------

FULL = ViewBatch.make(
    [2],
    images=torch.zeros(2, 3, 2, 2, dtype=torch.uint8),
    masks=torch.zeros(2, 2, 2, dtype=torch.bool),
    depth=torch.zeros(2, 2, 2),
    depth_valid=torch.ones(2, dtype=torch.bool),
    cameras=Cameras(torch.zeros(2, 3, 3), torch.zeros(2, 4, 4)),
    camera_valid=torch.ones(2, dtype=torch.bool),
    captions=["a"],
    caption_object=torch.tensor([0]),
    caption_view=torch.tensor([-1]),
    embeddings={"c/image": torch.zeros(2, 2)},
    state={"ovt.anchors": torch.zeros(1, 2), "ovt.outliers": torch.zeros(2)},
)
FIELD_NEEDS = {
    "images": "images",
    "masks": "masks",
    "depth": "depth",
    "depth_valid": "depth",
    "cameras": "cameras",
    "camera_valid": "cameras",
    "captions": "captions",
    "caption_object": "captions",
    "caption_view": "captions",
    "embeddings": "embeddings",
    "object_ids": "object_ids",
    "view_ids": "view_ids",
}


@pytest.mark.parametrize(("name", "need"), FIELD_NEEDS.items())
def test_a_field_is_readable_with_its_need_and_an_error_without(name, need):
    assert getattr(FULL.restricted(frozenset({need}), "ovt.vc"), name) is getattr(FULL, name)
    with pytest.raises(PluginError, match=rf"ovt\.vc reads batch\.{name} but does not declare '{need}' in its needs"):
        getattr(FULL.restricted(frozenset({"view"}), "ovt.vc"), name)


def test_positives_need_captions_and_the_layout_needs_nothing():
    assert FULL.restricted(frozenset({"captions"}), "x").positives().tolist() == [[True], [True]]
    bare = FULL.restricted(frozenset(), "x")
    with pytest.raises(PluginError, match="'captions'"):
        bare.positives()
    assert bare.object_of_view.tolist() == [0, 0]
    assert (bare.n_objects, bare.n_views, bare.max_views, bare.cu_views.tolist()) == (1, 2, 2, [0, 2])
    assert bare.device.type == "cpu"
    assert bare.source.tolist() == [0]


def test_published_state_is_readable_by_its_need_alone():
    batch = FULL.restricted(frozenset({"state:ovt.anchors"}), "ovt.vc")
    assert batch.state["ovt.anchors"].shape == (1, 2)
    assert "ovt.outliers" not in batch.state
    with pytest.raises(PluginError, match=r"ovt\.vc reads 'state:ovt\.outliers', .* \(it has: state:ovt\.anchors\)"):
        batch.state["ovt.outliers"]


def test_features_are_read_by_key_or_by_name_and_only_those_declared():
    values = {key: torch.full((1,), float(i)) for i, key in enumerate(("view", "object", "text", "dense"))}
    values |= {"logit_scale": torch.tensor(1.0), "logit_bias": torch.tensor(2.0), "ovt.blend": torch.zeros(1)}
    features = Features(values, axes={"ovt.blend": "view"})
    for key in ("view", "object", "text", "dense", "logit_scale", "logit_bias"):
        assert getattr(features, key) is features[key] is values[key]
    assert dict(features) == values
    few = features.restricted(frozenset({"view", "ovt.blend", "captions"}), "ovt.vc")
    assert set(few) == {"view", "ovt.blend"}
    assert few.axes["ovt.blend"] == "view"
    assert few.axes["text"] == "caption"
    for read in (lambda: few.text, lambda: few["text"]):
        with pytest.raises(PluginError, match=r"ovt\.vc reads 'text', .*not declare .*has: ovt\.blend, view"):
            read()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zero_hangs_on_every_feature_and_gives_zero_gradients(dtype):
    leaves = {
        "view": torch.full((2, 3), float("inf"), dtype=dtype, requires_grad=True),
        "logit_scale": torch.tensor(float("nan"), dtype=dtype, requires_grad=True),
        "text": torch.ones(0, 3, dtype=dtype, requires_grad=True),
    }
    zero = Features(leaves).zero()
    assert (zero.item(), zero.shape, zero.dtype) == (0.0, (), torch.float32)
    zero.backward()
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_zero_of_no_features_is_zero():
    assert Features({}).zero().item() == 0.0
