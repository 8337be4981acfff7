"""LoRA on the attention of every vision block, as Omniview-Tuning trains it beside the VIFormer."""

from __future__ import annotations

from collections.abc import Sequence

from mvcore.api import Adapter, Backbone, ConfigError, apply_lora, merge_lora
from torch import nn


class LoraAdapter(Adapter):
    """`ovt.lora`: W + (alpha / rank) B A on the query, key and value weights of each vision block.

    Targets that share a fused weight share one factor A, as in the released code, where `qkv` is one linear layer.
    Nothing changes before the first step: B starts at 0.

    Args:
        rank: rank of each update.
        alpha: the update is scaled by `alpha / rank`.
        targets: which of `q`, `k`, `v`.
    """

    def __init__(self, rank: int = 8, alpha: float = 8.0, targets: Sequence[str] = ("q", "k", "v")) -> None:
        super().__init__()
        self.rank = rank
        self.alpha = alpha
        self.targets = tuple(targets)
        self.updates = nn.ModuleList()
        self._names: list[str] = []
        self._modules_changed: list[nn.Module] = []

    def attach(self, backbone: Backbone) -> None:
        """Puts an update on each weight; the weights themselves keep their `requires_grad`.

        Raises:
            ConfigError: a backbone that does not say where its attention is, or a rank larger than a weight.
        """
        sites = getattr(backbone, "attention_sites", None)
        if sites is None:
            raise ConfigError(f"ovt.lora: {type(backbone).__name__} does not tell where its attention weights are")
        for site in sites():
            rows = [site.rows[target] for target in self.targets if target in site.rows]
            if not rows:
                continue
            try:
                update = apply_lora(site.module, site.parameter, rank=self.rank, alpha=self.alpha, rows=rows_of(rows))
            except ValueError as error:
                raise ConfigError(f"ovt.lora: {site.name}: {error}") from error
            self.updates.append(update)
            self._names.append(backbone.weight_name(site.module.parametrizations[site.parameter].original))
            self._modules_changed.append(site.module)

    def set_strength(self, strength: float) -> None:
        """Scales the updates: 0 gives the untouched weights bit for bit."""
        for update in self.updates:
            update.set_strength(strength)  # pyright: ignore[reportCallIssue]

    def merge(self) -> bool:
        """Folds the updates into the weights; the model is then the plain library's again."""
        for module in self._modules_changed:
            merge_lora(module)
        return True

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The factors by the library's weight: `<weight>.lora_a` (rank, in) and `<weight>.lora_b` (rows, rank)."""
        found: dict[str, nn.Parameter] = {}
        for name, update in zip(self._names, self.updates, strict=True):
            found[f"{name}.lora_a"], found[f"{name}.lora_b"] = update.a, update.b  # pyright: ignore[reportArgumentType]
        return found


def rows_of(ranges: Sequence[range]) -> list[range]:
    """Ranges in ascending order, touching ones joined."""
    joined: list[range] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if joined and joined[-1].stop == part.start:
            joined[-1] = range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined
