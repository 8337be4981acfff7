"""What each step draws from each source, as a pure function of (run seed, source name, global step); streams apart.

Nothing here has a state that a draw changes, so neither the number of workers nor a resume changes what is drawn; views
that a trainer prefers, the one thing that comes from outside, are saved and restored (see `preferred`). Global step g
(0-based) of a source with E steps per epoch is position g % E of epoch g // E; a source that is shorter than the run's
epoch starts its next epoch by itself.

`batch_size` is that of the whole run. Every rank draws the same global batch and keeps a contiguous part of its
objects, cut so that the ranks hold nearly equal numbers of views; an object is never split.
"""

from typing import TypeAlias

from mvcore.training.sampling.draws import Draw
from mvcore.training.sampling.pairs import PairFilter
from mvcore.training.sampling.preferred import PreferredViews
from mvcore.training.sampling.sampler import SourceSampler, steps_per_epoch
from mvcore.training.sampling.specification import SourceSpecification, assign_offsets, check_indexed, is_stream
from mvcore.training.sampling.streams import StreamSampler

AnySampler: TypeAlias = SourceSampler | StreamSampler


def sampler_of(source: SourceSpecification, seed: int) -> AnySampler:
    """What gives a source's batches.

    Raises:
        ConfigError, DataError: a source that cannot be drawn as asked.
    """
    return StreamSampler(source) if is_stream(source.dataset) else SourceSampler(source, seed)


__all__ = [
    "AnySampler",
    "Draw",
    "PairFilter",
    "PreferredViews",
    "SourceSampler",
    "SourceSpecification",
    "StreamSampler",
    "assign_offsets",
    "check_indexed",
    "is_stream",
    "sampler_of",
    "steps_per_epoch",
]
