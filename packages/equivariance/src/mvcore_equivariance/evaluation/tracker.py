"""A tracker of points made of features alone, with no training of its own: that of DINO-Tracker's baseline.

Tumanyan et al., *DINO-Tracker*, ECCV 2024. A point is where its feature is most similar, averaged over a disc; it is
hidden where its feature has changed, or where tracking back does not lead to the track again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mvcore.api import sample_dense
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from mvcore_equivariance.evaluation.dense import DenseMaps

_AT_ONCE = 256
"""Points that are looked for together."""


@dataclass(frozen=True)
class Tracks:
    """N points over T frames.

    Args:
        points: (N, T, 2) x, y in pixels of the frames.
        hidden: (N, T) bool.
    """

    points: Tensor
    hidden: Tensor


class Tracker:
    """Follows points through a video.

    Args:
        maps: of the T frames.
        radius: pixels about the best cell over which a place is averaged.
        temperature: of the weights of that average; at 1 they are nearly even.
        anchor_similarity: cosine to the point from which a frame of the track is an anchor.
        similarity: cosine below which a point is hidden.
    """

    def __init__(
        self, maps: DenseMaps, *, radius: float, temperature: float, anchor_similarity: float, similarity: float
    ) -> None:
        self._maps = maps
        self._cells = normalize(maps.values.flatten(2), dim=1)
        self._centres = maps.grid.centres(device=maps.values.device).flatten(0, 1)
        self._radius, self._temperature = radius, temperature
        self._anchor_similarity, self._similarity = anchor_similarity, similarity

    @property
    def frames(self) -> int:
        return len(self._maps.values)

    def track(self, queries: Tensor) -> Tracks:
        """Follows points from (N, 3) frame, x, y."""
        frames = queries[:, 0].long()
        points = queries[:, 1:].to(self._centres)
        sought = self._features(frames, points)
        tracks = torch.stack([self._find(sought, frame) for frame in range(self.frames)], dim=1)
        every = torch.arange(self.frames)
        along = torch.stack([self._features(every, track) for track in tracks])
        own = along[torch.arange(len(along)), frames]
        similarity = cosine_similarity(own[:, None], along, dim=2)
        return Tracks(tracks, self._hidden(tracks, along, similarity))

    def _hidden(self, tracks: Tensor, along: Tensor, similarity: Tensor) -> Tensor:
        """(N, T) from the tracks (N, T, 2), the features along them (N, T, C) and these' cosines to the points' own.

        Each point of a track is sought in the track's anchor frames. It is hidden where the median of its distances to
        the track there is larger than at any anchor.
        """
        anchor = similarity >= self._anchor_similarity
        distances = torch.full((len(tracks), self.frames, self.frames), torch.inf, device=tracks.device)
        for frame in range(self.frames):
            rows = anchor[:, frame].nonzero()[:, 0]
            if len(rows):
                back = self._find(along[rows].flatten(0, 1), frame).unflatten(0, (len(rows), self.frames))
                distances[rows, frame] = (back - tracks[rows, frame][:, None]).norm(dim=2)
        median = _lower_median(distances, anchor)
        limit = median.masked_fill(~anchor, -torch.inf).amax(1, keepdim=True)
        return (median > limit) | (similarity < self._similarity)

    def _features(self, frames: Tensor, points: Tensor) -> Tensor:
        """(N, C) features at points (N, 2) of one frame each (N,)."""
        found = torch.empty(len(points), self._maps.values.shape[1], device=points.device)
        for frame in frames.unique().tolist():
            rows = (frames == frame).nonzero()[:, 0].to(points.device)
            found[rows] = sample_dense(self._maps.values[frame][None], points[rows][None], self._maps.grid)[0]
        return found

    def _find(self, features: Tensor, frame: int) -> Tensor:
        """(N, 2) where features (N, C) are in a frame."""
        parts = [self._place(some, self._cells[frame]) for some in features.split(_AT_ONCE)]
        return torch.cat(parts)

    def _place(self, features: Tensor, cells: Tensor) -> Tensor:
        similarity = (normalize(features, dim=1) @ cells).relu()
        best = self._centres[similarity.argmax(1)]
        near = torch.cdist(best, self._centres, compute_mode="donot_use_mm_for_euclid_dist") <= self._radius
        # The softmax over all cells, cut to the disc and scaled to a sum of 1, is the softmax over the disc.
        weights = (similarity / self._temperature).masked_fill(~near, -torch.inf).softmax(1)
        return weights @ self._centres


def _lower_median(distances: Tensor, anchor: Tensor) -> Tensor:
    """(N, T) median over the anchors (N, A) of distances (N, A, T); of an even number the lower of the middle two."""
    ordered = distances.masked_fill(~anchor[:, :, None], torch.inf).sort(1).values
    middle = ((anchor.sum(1) - 1) // 2).clamp(min=0)
    return ordered.gather(1, middle[:, None, None].expand(-1, 1, distances.shape[2]))[:, 0]
