"""What options that count vision blocks mean, in the same words for every library."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mvcore.errors import ConfigError


def block_index(layer: int | None, blocks: Sequence[nn.Module], owner: str) -> int | None:
    """The block whose output is the dense map, from 0; None = the final map.

    Raises:
        ConfigError: there is no such block.
    """
    if layer is None:
        return None
    if not -len(blocks) <= layer < len(blocks):
        raise ConfigError(f"{owner}: dense.layer {layer} is not one of its {len(blocks)} vision blocks")
    return layer % len(blocks)


def last_of(
    blocks: Sequence[nn.Module], count: int, tail: Sequence[nn.Module | nn.Parameter], owner: str
) -> list[nn.Module | nn.Parameter]:
    """The last `count` blocks and the `tail` that follows them.

    Raises:
        ConfigError: more blocks than there are.
    """
    if not 1 <= count <= len(blocks):
        raise ConfigError(f"{owner}: train: last:{count}, but it has {len(blocks)} vision blocks")
    return [*blocks[-count:], *tail]
