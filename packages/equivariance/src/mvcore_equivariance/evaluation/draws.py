"""Random draws that hang on a seed and on names alone: not on the order of the data, nor on what else is measured."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of one draw."""
    text = "\0".join(map(str, (seed, *names)))
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
