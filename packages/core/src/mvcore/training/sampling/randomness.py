"""Independent random streams of a source: each a pure function of (run seed, source name, stream, number)."""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What is drawn; the number beside it is an epoch's or a step's."""

    EPOCH_ORDER = 0
    STEP_VIEWS = 1
    STEP_TRANSFORMS = 2
    EPOCH_COUNTS = 3
    STEP_PREFERRED = 4
    STEP_ORDER = 5


class Randomness:
    """The generators of one source.

    Args:
        seed: the run's seed.
        name: the source's name in the run.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._key = (seed % 2**64, zlib.crc32(name.encode()))

    def generator(self, stream: Stream, number: int) -> np.random.Generator:
        """The generator of a stream's number."""
        return np.random.Generator(np.random.Philox(self._seed(stream, number)))

    def transforms(self, step: int) -> TransformGenerators:
        """The random generators of a step's transforms, one for each position in the global batch."""
        return TransformGenerators(self._seed(Stream.STEP_TRANSFORMS, step))

    def _seed(self, stream: Stream, number: int) -> np.random.SeedSequence:
        return np.random.SeedSequence([*self._key, int(stream), number])


class TransformGenerators:
    """Random generators by position in the global batch, from one seed: `generators(position)`.

    Philox is counter-based, so that a position's stream is made by setting the counter's highest word, without mixing a
    seed for every object.
    """

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._philox_key = seed.generate_state(2, np.uint64)

    def __call__(self, position: int) -> np.random.Generator:
        counter = np.array([0, 0, 0, position], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=self._philox_key))
