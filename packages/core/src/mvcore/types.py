"""The types that every part shares: a packed batch of views, and the features computed from it.

N is the number of views in a batch, B of objects, T of captions, D of embedding dimensions. Views are packed along
dimension 0, the views of one object adjacent; nothing but tracks is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from mvcore.errors import PluginError
from mvcore.specs import BATCH_FIELDS, CORE_AXES, STATE, Axis


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of N views.

    Axes are OpenCV's (x right, y down, z forward); pixel centres stand at +0.5; the intrinsics are those of the
    image as it is in the batch.

    Args:
        intrinsics: (N, 3, 3) float32, in pixels.
        world_to_camera: (N, 4, 4) float32, in object units.
    """

    intrinsics: Tensor
    world_to_camera: Tensor


@dataclass(frozen=True)
class Tracks:
    """Points of space that N views show, padded to the most that one of them shows.

    Padded, so that views stay along dimension 0 as everywhere: a batch is cut, joined and moved by its rows.

    Args:
        points: (N, M, 2) float32, (x, y) in pixels of the image as it is in the batch, centres at +0.5.
        ids: (N, M) int64, which point of its object each is, the same in each view, none twice in a view; -1 = none.
        xyz: (N, M, 3) float32, where it is, in the world of the cameras.
    """

    points: Tensor
    ids: Tensor
    xyz: Tensor

    @staticmethod
    def none(views: int, points: int, device: torch.device | str = "cpu") -> Tracks:
        """Room for so many points of so many views, without any."""
        ids = torch.full((views, points), -1, dtype=torch.int64, device=device)
        places = (torch.zeros(views, points, k, device=device) for k in (2, 3))
        return Tracks(next(places), ids, next(places))

    def map_tensors(self, change: Callable[[Any], Any]) -> Tracks:
        """The same with every tensor changed."""
        return Tracks(change(self.points), change(self.ids), change(self.xyz))


@dataclass(frozen=True)
class ViewBatch:
    """B objects seen in N views, packed.

    Args:
        images: (N, 3, H, W) uint8 RGB, or None.
        view_counts: (B,) int64, each at least 1, sum N.
        source: (B,) int64, which data source of the run.
        object_ids: (B,) int64, global in the run's store; -1 = none.
        view_ids: (N,) int64, global in the run's store; -1 = none.
        captions: T texts.
        caption_object: (T,) int64, the object that a caption belongs to.
        caption_view: (T,) int64, the row of the view that it describes; -1 = the whole object.
        cameras, camera_valid: cameras of the views and (N,) bool which of them are known; or None.
        depth: (N, H, W) float32 z-depth in object units, 0 = none; or None.
        masks: (N, H, W) bool, True = object; or None.
        depth_valid: (N,) bool, which views have depth; or None.
        tracks: points of space that the views show; or None.
        embeddings: `<tag>/image` (N, D) and `<tag>/text` (T, D).
        state: what trainers publish, by name without the prefix `state:`, aligned with objects or views.
        object_of_view: (N,) int64. Made from `view_counts`, as are those after it; on the host, so that no step syncs.
        cu_views: (B + 1,) int32, where each object's views begin; the last entry is N.
        max_views: the largest view count.
        counts: the view counts on the host, for what must know them without waiting for the device.
    """

    view_counts: Tensor
    images: Tensor | None = None
    source: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    object_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    view_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    captions: tuple[str, ...] = ()
    caption_object: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    caption_view: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    cameras: Cameras | None = None
    camera_valid: Tensor | None = None
    depth: Tensor | None = None
    masks: Tensor | None = None
    depth_valid: Tensor | None = None
    tracks: Tracks | None = None
    embeddings: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    state: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    object_of_view: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    cu_views: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    max_views: int = 0
    n_views: int = 0
    counts: tuple[int, ...] = ()

    @staticmethod
    def make(view_counts: Sequence[int] | Tensor, **values: Any) -> ViewBatch:
        """A batch from its view counts and any other fields, on the host; ids default to -1, the source to 0.

        Raises:
            ValueError: a view count below 1, or a field whose length is not that of its axis.
        """
        counts = torch.as_tensor(view_counts, dtype=torch.int64).reshape(-1)
        listed = _listed(counts)
        if any(count < 1 for count in listed):
            raise ValueError(f"every object of a batch needs at least one view, got view counts {listed}")
        objects, views = len(listed), sum(listed)
        cu_views = torch.zeros(objects + 1, dtype=torch.int32)
        cu_views[1:] = torch.cumsum(counts, 0)
        values["captions"] = tuple(values.get("captions") or ())
        for name, length in (("source", objects), ("object_ids", objects), ("view_ids", views)):
            if values.get(name) is None:
                values[name] = torch.full((length,), 0 if name == "source" else -1, dtype=torch.int64)
        for name in ("caption_object", "caption_view"):
            if values.get(name) is None:
                if values["captions"]:
                    raise ValueError(f"a batch with captions needs {name}")
                values[name] = torch.empty(0, dtype=torch.int64)
        batch = ViewBatch(
            view_counts=counts,
            object_of_view=torch.repeat_interleave(torch.arange(objects), counts),
            cu_views=cu_views,
            max_views=max(listed, default=0),
            n_views=views,
            counts=tuple(listed),
            **values,
        )
        batch._check_lengths()
        batch._check_captions()
        return batch

    def _check_lengths(self) -> None:
        n_captions = len(self.captions)
        lengths: dict[str, tuple[Tensor | None, int]] = {
            "images": (self.images, self.n_views),
            "source": (self.source, self.n_objects),
            "object_ids": (self.object_ids, self.n_objects),
            "view_ids": (self.view_ids, self.n_views),
            "caption_object": (self.caption_object, n_captions),
            "caption_view": (self.caption_view, n_captions),
            "camera_valid": (self.camera_valid, self.n_views),
            "depth": (self.depth, self.n_views),
            "masks": (self.masks, self.n_views),
            "depth_valid": (self.depth_valid, self.n_views),
        }
        if self.cameras is not None:
            lengths["intrinsics"] = (self.cameras.intrinsics, self.n_views)
            lengths["world_to_camera"] = (self.cameras.world_to_camera, self.n_views)
        if self.tracks is not None:
            lengths |= {f"tracks.{name}": (part, self.n_views) for name, part in vars(self.tracks).items()}
        for key, tensor in self.embeddings.items():
            lengths[f"embeddings[{key!r}]"] = (tensor, self.sizes[embedding_axis(key)])
        for name, (tensor, length) in lengths.items():
            if tensor is not None and tensor.shape[0] != length:
                raise ValueError(f"{name} has {tensor.shape[0]} rows where the batch's layout says {length}")

    def _check_captions(self) -> None:
        """A caption of another object's view, or of none, would teach the wrong pairs without a sign."""
        objects, views = self.caption_object, self.caption_view
        if ((objects < 0) | (objects >= self.n_objects)).any():
            raise ValueError(f"caption_object must be in 0 .. {self.n_objects - 1}, got {_listed(objects)}")
        if ((views < -1) | (views >= self.n_views)).any():
            raise ValueError(f"caption_view must be in -1 .. {self.n_views - 1}, got {_listed(views)}")
        of_view = views >= 0
        if (self.object_of_view[views[of_view]] != objects[of_view]).any():
            raise ValueError(f"caption_view {_listed(views)} names views of other objects than {_listed(objects)}")

    @property
    def n_objects(self) -> int:
        return self.view_counts.shape[0]

    @property
    def device(self) -> torch.device:
        return self.view_counts.device

    @property
    def sizes(self) -> dict[Axis, int]:
        """How many rows each axis has."""
        return {"view": self.n_views, "object": self.n_objects, "caption": len(self.captions)}

    def positives(self) -> Tensor:
        """(N, T) bool: a view's own captions, or its object's where the view has none of its own."""
        rows = torch.arange(self.n_views, device=self.device)
        own = self.caption_view[None, :] == rows[:, None]
        whole = (self.caption_object[None, :] == self.object_of_view[:, None]) & (self.caption_view[None, :] < 0)
        return torch.where(own.any(dim=1, keepdim=True), own, whole)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ViewBatch:
        """The same batch with every tensor on `device`."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ViewBatch:
        """The same batch in page-locked memory (the hook that a DataLoader calls)."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())

    def map_tensors(self, change: Callable[[Any], Any]) -> ViewBatch:
        """The same batch with every tensor changed; what stands in the place of one, as an array, is changed too."""
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Cameras):
                values[item.name] = Cameras(change(value.intrinsics), change(value.world_to_camera))
            elif isinstance(value, Tracks):
                values[item.name] = value.map_tensors(change)
            elif item.name in ("embeddings", "state"):
                values[item.name] = {key: change(tensor) for key, tensor in value.items()}
            elif hasattr(value, "dtype"):
                values[item.name] = change(value)
        return replace(self, **values)

    def with_state(self, state: Mapping[str, Tensor]) -> ViewBatch:
        """The same batch with more published state."""
        return replace(self, state={**self.state, **state})

    def restricted(self, needs: frozenset[str], owner: str) -> ViewBatch:
        """The same batch in which reading a field outside `needs` is an error that names `owner` and the field."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        allowed = {key.removeprefix(STATE) for key in needs if key.startswith(STATE)}
        values["state"] = _NamedMapping({k: v for k, v in self.state.items() if k in allowed}, owner, STATE)
        guarded = _RestrictedBatch(**values)
        object.__setattr__(guarded, "_guard", (BATCH_FIELDS - needs, owner))
        return guarded


def embedding_axis(key: str) -> Axis:
    """What the rows of a batch's stored embeddings stand for, by their key `<tag>/image` or `<tag>/text`."""
    return "caption" if key.endswith("/text") else "view"


def _listed(indices: Tensor) -> list[int]:
    return indices.cpu().numpy().tolist()


_FIELD_OF = {
    "caption_object": "captions",
    "caption_view": "captions",
    "positives": "captions",
    "camera_valid": "cameras",
    "depth_valid": "depth",
}


class _RestrictedBatch(ViewBatch):
    """A batch as one part may see it."""

    def __getattribute__(self, name: str) -> Any:
        needed = _FIELD_OF.get(name, name)
        if needed in BATCH_FIELDS:
            hidden, owner = self.__dict__.get("_guard", (frozenset[str](), ""))
            if needed in hidden:
                raise PluginError(f"{owner} reads batch.{name} but does not declare {needed!r} in its needs")
        return super().__getattribute__(name)

    def positives(self) -> Tensor:
        return super().positives()


class _NamedMapping(Mapping[str, Tensor]):
    """Tensors by key, whose missing keys are reported under the name of the part that asked."""

    def __init__(self, values: Mapping[str, Tensor], owner: str, prefix: str = "") -> None:
        self._values = dict(values)
        self._owner = owner
        self._prefix = prefix

    def __getitem__(self, key: str) -> Tensor:
        try:
            return self._values[key]
        except KeyError:
            has = ", ".join(sorted(self._prefix + k for k in self._values)) or "nothing"
            raise PluginError(
                f"{self._owner} reads {self._prefix + key!r}, which it does not declare in its needs (it has: {has})"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values


class Features(_NamedMapping):
    """What encoder and adapters computed for a batch: a read-only mapping with the features that were asked for.

    `view` (N, D), `object` (B, D), `text` (T, D), `dense` (N, C, h, w), `logit_scale` () and `logit_bias` () are
    core's; plugins add keys `plugin.name`. The scale is a logarithm, as open_clip stores it. Core never normalises a
    vector.

    Args:
        values: tensors by key.
        owner: who reads them, for the text of errors.
        axes: what rows of keys other than core's stand for.
    """

    def __init__(
        self, values: Mapping[str, Tensor], owner: str = "this part", axes: Mapping[str, Axis] | None = None
    ) -> None:
        super().__init__(values, owner)
        self.axes: Mapping[str, Axis] = {**CORE_AXES, **(axes or {})}

    @property
    def view(self) -> Tensor:
        return self["view"]

    @property
    def object(self) -> Tensor:
        return self["object"]

    @property
    def text(self) -> Tensor:
        return self["text"]

    @property
    def dense(self) -> Tensor:
        return self["dense"]

    @property
    def logit_scale(self) -> Tensor:
        return self["logit_scale"]

    @property
    def logit_bias(self) -> Tensor:
        return self["logit_bias"]

    def zero(self) -> Tensor:
        """() float32 zero that hangs on every feature's graph, so that backward works and gives zero gradients."""
        total = torch.zeros((), dtype=torch.float32)
        for tensor in self._values.values():
            # The sum of an empty slice: 0 * x would turn an infinite x into NaN.
            total = total.to(tensor.device) + tensor.flatten()[:0].sum().float()
        return total

    def restricted(self, needs: frozenset[str], owner: str) -> Features:
        """Only the features in `needs`; another read is an error that names `owner` and the key."""
        return Features({key: value for key, value in self._values.items() if key in needs}, owner, self.axes)
