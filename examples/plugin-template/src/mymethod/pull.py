"""A loss over a whole batch: what it reads stands in its spec's `needs`."""

from __future__ import annotations

from mvcore.api import Features, ViewBatch
from torch import Tensor, nn
from torch.nn import functional as F


def pull(views: Tensor, object_of_view: Tensor, n_objects: int, power: float = 1.0) -> Tensor:
    """Mean cosine distance of views to their object's mean direction.

    Args:
        views: (N, D), of any scale.
        object_of_view: (N,) int64, which object each view shows.
        n_objects: how many objects there are.
        power: of each distance.

    Returns:
        ().
    """
    unit = F.normalize(views, dim=1)
    means = unit.new_zeros(n_objects, unit.shape[1]).index_add(0, object_of_view, unit)
    cosine = (unit * F.normalize(means, dim=1)[object_of_view]).sum(dim=1)
    # A view that is its object's mean is at 0, up to rounding; below it a power would not be defined.
    return (1 - cosine).clamp(min=1e-6).pow(power).mean()


class Pull(nn.Module):
    """`mymethod.pull`.

    Args:
        power: see `pull`.
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """() loss."""
        return pull(features.view, batch.object_of_view, batch.n_objects, self.power)
