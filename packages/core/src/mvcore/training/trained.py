"""What training changes, by the names under which checkpoints hold it; needs no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mvcore.errors import WeightsError
from mvcore.parts import Adapter, copy_strictly


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """What training changes in a part: its own account where it gives one, else its trainable parameters."""
    give: Callable[[], dict[str, Tensor]] | None = getattr(module, "trained_state", None)
    return give() if give is not None else {name: p.detach() for name, p in trainable(module).items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_pipeline_state(pipeline: Any, state: Mapping[str, Tensor]) -> None:
    """Restores a model's trained weights by checkpoint name; entries of losses are left to them.

    Raises:
        WeightsError: a missing or unexpected key, or a wrong shape.
    """
    known = ("backbone/", "losses/", *(f"adapters/{link.name}/" for link in pipeline.links))
    for key in state:
        if not key.startswith(known):
            raise WeightsError(f"the checkpoint holds {key!r}, for which this run has no part")
    copy_strictly(under("backbone/", state), pipeline.backbone_state(), "the backbone")
    for link in pipeline.links:
        values = under(f"adapters/{link.name}/", state)
        if isinstance(link.module, Adapter):
            link.module.load_trained_state(values)
        else:
            copy_strictly(values, trainable(link.module), f"adapter {link.name}")
