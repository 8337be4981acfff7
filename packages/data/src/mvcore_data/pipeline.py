"""From stored images to a batch's pixels: fits, augments, and moves masks, depth and cameras along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from mvcore.api import Cameras, Tracks
from numpy.typing import NDArray
from torch import Tensor

from mvcore_data.augmentation import Augmentation, Change, crop_window, in_pixels
from mvcore_data.options import ImageOptions
from mvcore_data.tracks import Tracks as StoredTracks
from mvcore_data.transforms import (
    Fit,
    Matrices,
    Window,
    cut_image,
    cut_map,
    fit_window,
    move_cameras,
    move_points,
    warp,
)

Camera: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
Generators: TypeAlias = Sequence[tuple[np.random.Generator, int]]
"""Each object's random generator and its number of views."""


@dataclass(frozen=True)
class Placed:
    """Where the pixels of N views come from.

    Args:
        windows: of each stored image.
        cropped: the windows were drawn, not fitted.
        moves: (N, 3, 3) in pixels of the square image, or None.
        changes: of pixels where they are, in order.
    """

    windows: list[Window]
    cropped: bool = False
    moves: Matrices | None = None
    changes: tuple[Change, ...] = ()

    def matrices(self) -> Matrices:
        """(N, 3, 3) from stored to final pixels."""
        made = {window: window.matrix() for window in set(self.windows)}
        fits = np.stack([made[window] for window in self.windows])
        return fits if self.moves is None else self.moves @ fits


class Pipeline:
    """The chain of transforms of a dataset.

    Args:
        side: of the square images.
        options: fit, background and augment.
    """

    def __init__(self, side: int, options: ImageOptions) -> None:
        self.side = side
        self.augmentation = Augmentation(options.augment)
        self._fit: Fit = options.fit
        self._fill = options.background
        self._windows: dict[tuple[int, int], Window] = {}

    def fit(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) to (S, S, 3): all that evaluation does."""
        return self._cut(pixels, self._window(pixels.shape[0], pixels.shape[1]))

    def place(self, sizes: Sequence[tuple[int, int]], generators: Generators | None) -> Placed:
        """Draws the transforms of views whose stored images have these (height, width); no generators = evaluation."""
        if generators is None or not self.augmentation:
            return Placed([self._window(*size) for size in sizes])
        uniform = np.concatenate([rng.random((count, self.augmentation.numbers)) for rng, count in generators])
        drawn = self.augmentation.draw(uniform)
        moves = None if drawn.matrices is None else in_pixels(drawn.matrices, self.side)
        if drawn.boxes is None:
            return Placed([self._window(*size) for size in sizes], False, moves, drawn.changes)
        windows = [crop_window(box, *size, self.side) for box, size in zip(drawn.boxes, sizes, strict=True)]
        return Placed(windows, True, moves, drawn.changes)

    def cut(self, placed: Placed, stored: Callable[[int, NDArray[np.uint8] | None], NDArray[np.uint8]]) -> Tensor:
        """(N, 3, S, S) uint8 in channels-last memory, the window of each stored image.

        `stored(row, out)` gives an image's (H, W, 3) pixels, best in `out` where that is given.
        """
        cut = np.empty((len(placed.windows), self.side, self.side, 3), np.uint8)
        whole = Window((0, 0, self.side, self.side), (self.side, self.side))
        for row, window in enumerate(placed.windows):
            # A window that is all of its image may also be a window of a larger one: the reader knows the size.
            target = cut[row]
            pixels = stored(row, target if window == whole else None)
            if pixels is not target:
                cut[row] = self._cut(pixels, window)
        # To move the channels here would cost a third of the time to decode them.
        return torch.from_numpy(cut).permute(0, 3, 1, 2)

    def finish(self, images: Tensor, placed: Placed) -> Tensor:
        """What follows the window: geometric transforms, then changes of pixels; images may be changed in place."""
        if placed.moves is not None:
            images = warp(images, placed.moves, self._fill)
        for change in placed.changes:
            change.to(images)
        return images

    def with_background(self, images: Tensor, shown: Tensor) -> Tensor:
        """(N, 3, S, S) images with the background where (N, S, S) shows nothing."""
        behind = torch.tensor(self._fill or (0, 0, 0), dtype=torch.uint8)[:, None, None]
        return torch.where(shown[:, None], images, behind)

    def maps(self, maps: Sequence[NDArray | None], placed: Placed, dtype: type[np.generic]) -> Tensor:
        """(N, S, S) masks or depth; 0 where there is none."""
        cut = np.zeros((len(maps), self.side, self.side), dtype)
        for row, (values, window) in enumerate(zip(maps, placed.windows, strict=True)):
            if values is not None:
                cut[row] = cut_map(values, window, self.side)
        tensor = torch.from_numpy(cut)
        if placed.moves is None:
            return tensor
        return warp(tensor.float()[:, None], placed.moves, (0,))[:, 0].to(tensor.dtype)

    def cameras(self, cameras: Sequence[Camera | None], placed: Placed) -> dict[str, Any]:
        """The batch's `cameras` and `camera_valid`; a view without one has identities."""
        missing = (np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32))
        given = [missing if camera is None else camera for camera in cameras]
        intrinsics, world_to_camera, valid = move_cameras(
            np.stack([camera[0] for camera in given]).astype(np.float64),
            np.stack([camera[1] for camera in given]).astype(np.float64),
            placed.matrices(),
        )
        known = valid & np.array([camera is not None for camera in cameras])
        pair = (torch.from_numpy(part.astype(np.float32)) for part in (intrinsics, world_to_camera))
        return {"cameras": Cameras(*pair), "camera_valid": torch.from_numpy(known)}

    def tracks(self, tracks: Sequence[StoredTracks | None], placed: Placed) -> Tracks:
        """The batch's tracks, moved as the pixels are; points that leave the image are dropped."""
        given = [(row, found) for row, found in enumerate(tracks) if found is not None]
        rows = np.repeat([row for row, _ in given], [len(found.ids) for _, found in given]).astype(np.int64)
        points = np.concatenate([np.zeros((0, 2)), *(found.points for _, found in given)])
        ids = np.concatenate([np.zeros(0, np.int64), *(found.ids for _, found in given)])
        xyz = np.concatenate([np.zeros((0, 3), np.float32), *(found.xyz for _, found in given)])
        points = move_points(points[:, None], placed.matrices()[rows])[:, 0]
        inside = ((points >= 0) & (points < self.side)).all(1)
        points, ids, xyz, rows = points[inside], ids[inside], xyz[inside], rows[inside]
        counts = np.bincount(rows, minlength=len(tracks))
        column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        padded = Tracks.none(len(tracks), int(counts.max(initial=0)))
        padded.points.numpy()[rows, column] = points
        padded.ids.numpy()[rows, column] = ids
        padded.xyz.numpy()[rows, column] = xyz
        return padded

    def _window(self, height: int, width: int) -> Window:
        if (height, width) not in self._windows:
            self._windows[height, width] = fit_window(height, width, self.side, self._fit)
        return self._windows[height, width]

    def _cut(self, pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
        return cut_image(pixels, window, self.side, self._fill or (0, 0, 0))
