"""What each step draws from each source, as a pure function of (run seed, source name, global step).

Nothing here has a state that a draw changes, so neither the number of workers nor a resume changes what is drawn; views
that a trainer prefers, the one thing that comes from outside, are saved and restored (see `preferred`). Global step g
(0-based) of a source with E steps per epoch is position g % E of epoch g // E; a source that is shorter than the run's
epoch starts its next epoch by itself.

`batch_size` is that of the whole run. Every rank draws the same global batch and keeps a contiguous part of its
objects, cut so that the ranks hold nearly equal numbers of views; an object is never split.
"""

from mvcore.training.sampling.draws import Draw
from mvcore.training.sampling.pairs import PairFilter
from mvcore.training.sampling.preferred import PreferredViews
from mvcore.training.sampling.sampler import SourceSampler, steps_per_epoch
from mvcore.training.sampling.specification import SourceSpecification, assign_offsets

__all__ = [
    "Draw",
    "PairFilter",
    "PreferredViews",
    "SourceSampler",
    "SourceSpecification",
    "assign_offsets",
    "steps_per_epoch",
]
