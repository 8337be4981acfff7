"""What a model's vectors depend on, as plain values that can stand in a file and be compared with another model's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from mvcore.model import Model
    from mvcore.parts import Backbone

_NO_EFFECT = ("train", "embeddings")
"""Options of a backbone that change none of its vectors."""


def model_key(model: Model) -> dict[str, Any]:
    """What the vectors of a model depend on.

    Returns:
        `model`: how the user named it, for the text of errors and to load it again; `architecture_sha256`: over the
        library's own config, or the options of a backbone that has none, and the adapters with their options;
        `weights_sha256`: over all names and values; `image_size`; and what the backbone's `preprocessing` gives, as
        `mean` and `std`.
    """
    links = model.pipeline.links
    key = backbone_key(model.backbone)
    if model.name not in ("model", key["model"].get("id")):
        key["model"]["source"] = model.name
    if not links:
        return key
    made_of = {link.name: link.made_of for link in links}
    return {
        **key,
        "model": {**key["model"], "adapters": made_of},
        "architecture_sha256": _digest([key["architecture_sha256"], made_of]),
        "weights_sha256": weights_digest(model.pipeline),
    }


def backbone_key(backbone: Backbone) -> dict[str, Any]:
    """As `model_key`, of a backbone alone."""
    config = getattr(backbone, "library_config", None)
    options = {key: value for key, value in backbone.origin.items() if key not in _NO_EFFECT}
    return {
        "model": dict(backbone.origin),
        "architecture_sha256": _digest([backbone.origin.get("id"), options if config is None else config()]),
        "weights_sha256": weights_digest(backbone.model),
        "image_size": backbone.image_size,
        **backbone.preprocessing(),
    }


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over every parameter and persistent buffer, with names, types and shapes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
