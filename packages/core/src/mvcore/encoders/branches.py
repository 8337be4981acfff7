"""Several ways through the blocks of one vision transformer, which share the blocks that are common to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from torch import Tensor, nn

from mvcore.encoders.stages import Stages, stages_of
from mvcore.types import ViewBatch

Run: TypeAlias = Callable[[Stages, Tensor, ViewBatch], Tensor]
"""From the tokens (N, L, C) before a branch's first block to its feature."""

Known: TypeAlias = Callable[[ViewBatch], Tensor | None]
"""The tokens before a branch's first block where they need not be computed, as from a cache; else None."""


@dataclass(frozen=True)
class Branch:
    """A feature by another way from a block on.

    Args:
        first_block: the block that it starts from; the number of blocks = what follows the last one.
        run: from the tokens before that block to the feature.
        known: gives those tokens where they need not be computed.
    """

    first_block: int
    run: Run
    known: Known | None = None


@dataclass
class Branches:
    """The branches of a vision tower.

    Args:
        visual: the library's tower.
        owner: the model's name, for the text of errors.
    """

    visual: nn.Module
    owner: str
    _branches: dict[str, Branch] = field(default_factory=dict[str, Branch])

    @cached_property
    def stages(self) -> Stages:
        """The tower taken apart.

        Raises:
            PluginError: it is no plain vision transformer.
        """
        return stages_of(self.visual, self.owner)

    @property
    def keys(self) -> frozenset[str]:
        """The features that the branches give."""
        return frozenset(self._branches)

    def add(self, key: str, first_block: int, run: Run, known: Known | None) -> None:
        """See `Backbone.add_branch`.

        Raises:
            ConfigError: no such block.
            PluginError: a tower or attention that is not known.
        """
        self.stages.check_crossing(first_block, self.owner)
        self._branches[key] = Branch(first_block, run, known)

    def encode(
        self,
        pixels: Callable[[], Tensor],
        batch: ViewBatch,
        keys: frozenset[str],
        *,
        view: bool,
        taps: Mapping[str, Branch] | None = None,
    ) -> dict[str, Tensor]:
        """The features of the branches `keys` and, with `view`, the tower's own vectors; what they share runs once.

        Args:
            pixels: gives normalised images; not called where no block needs them.
            taps: further features of this call alone, as a map of patches between two blocks.
        """
        features: dict[str, Tensor] = {}
        waiting: list[tuple[str, Branch]] = list((taps or {}).items())
        for key in sorted(keys):
            branch = self._branches[key]
            tokens = None if branch.known is None else branch.known(batch)
            if tokens is None:
                waiting.append((key, branch))
            else:
                features[key] = branch.run(self.stages, tokens, batch)
        if waiting or view:
            features |= self._through(self.stages.embed(pixels()), batch, waiting, view)
        return features

    def _through(
        self, tokens: Tensor, batch: ViewBatch, waiting: list[tuple[str, Branch]], view: bool
    ) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        reached = 0
        for key, branch in sorted(waiting, key=lambda entry: entry[1].first_block):
            tokens = self.stages.run(tokens, reached, branch.first_block)
            reached = branch.first_block
            features[key] = branch.run(self.stages, tokens, batch)
        if view:
            features["view"] = self.stages.finish(self.stages.run(tokens, reached, len(self.stages.blocks)))
        return features
