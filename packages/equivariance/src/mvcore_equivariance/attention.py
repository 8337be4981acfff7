"""LoRA on the query and value weights of a vision transformer's last blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvcore.api import AttentionSite, apply_lora, merge_lora
from torch import nn


class AttentionUpdates(nn.Module):
    """W + B A on q and on v of the last self-attentions, each with factors of its own, as the authors have it.

    Nothing is scaled, keys stay bit for bit, and nothing changes before the first step: A is drawn from
    `kaiming_uniform(a=sqrt(5))` and B is 0. Updates that others put on the same weights add up with these.

    Args:
        sites: where the model's attention keeps its weights, in the order of its blocks.
        rank: rank of each update.
        last_blocks: how many self-attentions from the end.
        name_of: the library's name of a weight.

    Raises:
        ValueError: fewer blocks than asked for, or a rank that does not fit.
    """

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        *,
        rank: int,
        last_blocks: int,
        name_of: Callable[[nn.Parameter], str],
    ) -> None:
        super().__init__()
        places = {key: [site for site in sites if key in site.rows] for key in ("q", "v")}
        there = len(places["q"])
        if not 1 <= last_blocks <= there:
            raise ValueError(f"last_blocks must be from 1 to {there}, the blocks with attention, got {last_blocks}")
        self.updates = nn.ModuleList()
        self._names: list[str] = []
        self._changed: list[nn.Module] = []
        for pair in zip(places["q"][-last_blocks:], places["v"][-last_blocks:], strict=True):
            for key, site in zip(("q", "v"), pair, strict=True):
                self.updates.append(
                    apply_lora(site.module, site.parameter, rank=rank, alpha=float(rank), rows=site.rows[key])
                )
                weight = site.module.parametrizations[site.parameter].original  # pyright: ignore
                self._names.append(f"{name_of(weight)}.{key}")  # pyright: ignore[reportArgumentType]
                self._changed.append(site.module)

    def factors(self) -> dict[str, nn.Parameter]:
        """By the library's weight, in the order of the blocks: `<weight>.q.lora_a` (rank, in), `<weight>.q.lora_b`
        (rows, rank), then v's.
        """
        found: dict[str, nn.Parameter] = {}
        for name, update in zip(self._names, self.updates, strict=True):
            found[f"{name}.lora_a"], found[f"{name}.lora_b"] = update.a, update.b  # pyright: ignore
        return found

    def set_strength(self, strength: float) -> None:
        """0 gives the untouched weights bit for bit."""
        for update in self.updates:
            update.set_strength(strength)  # pyright: ignore[reportCallIssue]

    def merge(self) -> None:
        """Folds the updates, and those that others put on the same weights, into the weights."""
        for module in self._changed:
            merge_lora(module)
        self.updates = nn.ModuleList()
        self._names, self._changed = [], []
