"""Pairs of views by the angle between their cameras and by what both see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mvcore.errors import ConfigError, DataError
from mvcore.parts import GivesCameras, GivesCovisibility, IndexedDataset
from mvcore.training.sampling.draws import Draw, Integers

TOLERANCE = 0.01
"""Degrees by which an angle may pass its limit: cameras are stored in single precision, and rigs are regular."""


@dataclass(frozen=True)
class PairFilter:
    """Which ordered pairs of views may be drawn.

    Args:
        angle: lowest and highest angle between the cameras in degrees; None = any.
        angle_of: the whole relative `rotation`, with the roll about the optical axis, or the `direction` of the optical
            axes alone.
        covisibility: least share of the first view's foreground that the second view sees; None = any.
    """

    angle: tuple[float, float] | None = None
    angle_of: Literal["rotation", "direction"] = "rotation"
    covisibility: float | None = None

    def __str__(self) -> str:
        asked = []
        if self.angle is not None:
            asked.append(f"pair_angle: [{self.angle[0]:g}, {self.angle[1]:g}] ({self.angle_of})")
        if self.covisibility is not None:
            asked.append(f"pair_covisibility: {self.covisibility:g}")
        return ", ".join(asked)


def pair_angles(world_to_camera: NDArray[np.floating], of: Literal["rotation", "direction"]) -> NDArray[np.float64]:
    """(V, V) angles in degrees between cameras; NaN where one is not known.

    Args:
        world_to_camera: (V, 4, 4), NaN for a view without a camera.
        of: see `PairFilter`.
    """
    turns = np.asarray(world_to_camera, np.float64)[:, :3, :3]
    # Half the sum and half the difference of two unit vectors are the cosine and sine of half their angle; so are those
    # of two rotations, in the Frobenius norm. The arc cosine would lose half of the digits near its ends.
    vectors = turns[:, 2] if of == "direction" else turns.reshape(-1, 9)
    dots = vectors @ vectors.T
    lengths = np.diagonal(dots)
    difference = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    if of == "direction":
        return np.degrees(2 * np.arctan2(difference, np.linalg.norm(vectors[:, None] + vectors[None], axis=-1)))
    # |R - S|^2 = 6 - 2 tr = 8 sin^2(t / 2), and 1 + tr = 4 cos^2(t / 2).
    cosine = np.sqrt(np.maximum(0.0, 1 + 3 * dots / np.sqrt(lengths[:, None] * lengths[None]))) / 2
    return np.degrees(2 * np.arctan2(difference / np.sqrt(8), cosine))


class PairTable:
    """The pairs of a dataset that a filter lets through.

    Objects without such a pair are left out. Angles of all objects are compared at once, without loading an image;
    co-visibility is found for one likely pair of each object at first and for all of its pairs when it is first drawn.

    Attributes:
        objects: (O,) indices of the objects that have a pair.
        left_out: how many have none.

    Raises:
        ConfigError: the dataset does not tell what the filter asks for.
        DataError: no object has a pair.
    """

    def __init__(self, dataset: IndexedDataset, wanted: PairFilter, where: str) -> None:
        if not isinstance(dataset, GivesCameras):
            raise ConfigError(f"{where}: {wanted} needs cameras, which {type(dataset).__name__} does not give")
        if wanted.covisibility is not None and not isinstance(dataset, GivesCovisibility):
            raise ConfigError(f"{where}: pair_covisibility needs depth, which {type(dataset).__name__} does not give")
        self._dataset = dataset
        self._cameras = dataset
        self._wanted = wanted
        self._known: dict[int, NDArray[np.uint8]] = {}
        has_pair = np.fromiter((self._has_pair(i) for i in range(len(dataset))), np.bool_, len(dataset))
        self.objects: Integers = np.flatnonzero(has_pair)
        self.left_out = len(dataset) - len(self.objects)
        if not len(self.objects):
            raise DataError(
                f"{where}: no object has two views with {wanted}; ask for less, and look with 'mvcore data info' "
                "whether the views have cameras and depth"
            )

    def valid(self, i: int) -> NDArray[np.bool_]:
        """(V, V): may object i's view of the row be first and that of the column second?"""
        views = len(self._dataset.views_of(i))
        if i not in self._known:
            found = self._close(self._angles(i))
            if self._wanted.covisibility is not None:
                found &= self._seen(i, self._dataset.views_of(i)) >= self._wanted.covisibility
            self._known[i] = np.packbits(found)
        return np.unpackbits(self._known[i], count=views**2).view(np.bool_).reshape(views, views)

    def draw(self, objects: Integers, rng: np.random.Generator) -> Draw:
        """A pair of each object, uniform over its pairs."""
        at = rng.random(len(objects))
        views = np.empty((len(objects), 2), np.int64)
        for row, i in enumerate(objects.tolist()):
            pairs = np.flatnonzero(self.valid(i))
            ids = self._dataset.views_of(i)
            views[row] = [ids[k] for k in divmod(int(pairs[int(at[row] * len(pairs))]), len(ids))]
        return Draw(objects, views.reshape(-1), np.full(len(objects), 2, np.int64))

    def _has_pair(self, i: int) -> bool:
        angles = self._angles(i)
        close = self._close(angles)
        if self._wanted.covisibility is None or not close.any():
            return bool(close.any())
        # The nearest two cameras share most; only where they do not share enough all pairs are looked at.
        first, second = np.unravel_index(np.argmin(np.where(close, angles, np.inf)), angles.shape)
        ids = self._dataset.views_of(i)
        near = self._seen(i, [ids[int(first)], ids[int(second)]])
        return bool(near[0, 1] >= self._wanted.covisibility) or bool(self.valid(i).any())

    def _angles(self, i: int) -> NDArray[np.float64]:
        return pair_angles(self._cameras.cameras_of(i)[1], self._wanted.angle_of)

    def _close(self, angles: NDArray[np.float64]) -> NDArray[np.bool_]:
        low, high = self._wanted.angle or (0.0, 180.0)
        close = (angles >= low - TOLERANCE) & (angles <= high + TOLERANCE)
        np.fill_diagonal(close, False)
        return close

    def _seen(self, i: int, views: Sequence[int]) -> NDArray[np.floating]:
        assert isinstance(self._dataset, GivesCovisibility)
        return self._dataset.covisibility(i, views)
