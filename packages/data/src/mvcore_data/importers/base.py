"""What an importer gives: objects and their views, described and not yet read.

An importer is a module with a `FORMAT`. Its `read` walks the source in an order that is the same at every call, without
opening an image, so that a pack that was interrupted can go on where it stood; `mvcore_data.packing` reads the images,
checks them and writes the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from mvcore.api import Options
from numpy.typing import ArrayLike, NDArray

from mvcore_data.tracks import Tracks

Image: TypeAlias = "bytes | NDArray[np.uint8]"
"""An encoded JPEG, PNG or WebP file, or (H, W, 3 or 4) uint8 RGB or RGBA."""


@dataclass(frozen=True, kw_only=True)
class SourceView:
    """One view.

    Args:
        name: how messages name it: the path of its file, or the place in a larger one, as `images.h5: imgs[3, 0]`.
        read: gives the image. Raises `source_images.UnusableError`, whose text says why, for a view to leave out.
        captions: texts about this view alone.
        camera: (intrinsics (3, 3) in pixels of this image, centres at +0.5; world_to_camera (4, 4)), OpenCV axes.
        depth: gives (H, W) z-depth in object units, 0 = none.
        mask: gives (H, W), non-zero = object. Without one, an image's alpha channel becomes its mask.
        tracks: points of space that it shows, in pixels of this image.
    """

    name: str
    read: Callable[[], Image]
    captions: Sequence[str] = ()
    camera: tuple[ArrayLike, ArrayLike] | None = None
    depth: Callable[[], ArrayLike] | None = None
    mask: Callable[[], ArrayLike] | None = None
    tracks: Tracks | None = None


@dataclass(frozen=True, kw_only=True)
class SourceObject:
    """One object; `views` may be made only when they are asked for, but each call gives the same ones.

    Args:
        id: its id in the store, unique in the source.
        name: how messages name it: its folder, or the row of its table.
        views: at least one.
        captions: texts about the object as a whole.
        category, licence, source, creator: as in `ViewStoreWriter.add_object`.
    """

    id: str
    name: str
    views: Sequence[SourceView]
    captions: Sequence[str] = ()
    category: str | None = None
    licence: str | None = None
    source: str | None = None
    creator: str | None = None


@dataclass
class Skipped:
    """What was left out: by why, how many and the first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, why: str, name: str | Path) -> None:
        """Records something left out."""
        self.counts[why] = self.counts.get(why, 0) + 1
        self.first.setdefault(why, str(name))

    def restore(self, recorded: Skipped) -> None:
        """Takes over what another one holds."""
        self.counts.clear()
        self.counts.update(recorded.counts)
        self.first.clear()
        self.first.update(recorded.first)


@dataclass(frozen=True)
class Source:
    """An opened source.

    Args:
        objects: them, in the same order at every call; nothing of a later object is held in memory.
        total: how many there are (an upper bound), or None where only a walk would tell.
    """

    objects: Callable[[Skipped], Iterator[SourceObject]]
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout that `mvcore data pack` reads.

    Args:
        name: as in `--format`.
        summary: what the layout is, in one line.
        detect: says by which marks a path has this layout ("metadata.json with obj_id"), or None; reads little.
        open: opens a path with its options.
        options: the model of its options (`--option key=value`); the fields' docstrings are shown to the user.
        strict_marks: whether its marks are its own alone. Formats without (a folder of images is also inside others)
            are only taken when no other format claims the path.
    """

    name: str
    summary: str
    detect: Callable[[Path], str | None]
    open: Callable[[Path, Any], Source]
    options: type[Options] = Options
    strict_marks: bool = True


def spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """At most `most` items evenly over the whole of a sequence, first and last included; all where `most` is None."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[int(k)] for k in np.linspace(0, len(items) - 1, most).round()]


def file_reader(path: Path) -> Callable[[], bytes]:
    """A `SourceView.read` for an image file: bounded in size, its errors as reasons to leave it out."""
    from mvcore_data.source_images import read_bytes

    return lambda: read_bytes(path)
