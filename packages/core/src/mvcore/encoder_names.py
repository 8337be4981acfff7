"""Which backbone a model's name means, told without importing a model library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mvcore.encoders.options import config_at_hand
from mvcore.paths import WEIGHT_SUFFIXES, model_and_tag
from mvcore.plugins import Registry
from mvcore.specs import NAME

TIMM = "timm:"
"""Begins a timm model's name where open_clip has one of the same name, or the hub's does not say whose it is."""

_TIMM_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*(\.[a-z0-9_]+)?")


def encoder_named(text: str, registry: Registry) -> tuple[str, dict[str, Any]]:
    """The backbone's id and options for an id, as `mymethod.clip`, or `NAME`, `NAME:PRETRAINED` or `timm:NAME`.

    What begins with a plugin's name is an id, whose options are left as they are. Else a name that open_clip knows is
    open_clip's; one in the form of timm's names is timm's, and its tag, as in `vit_small_patch14_dinov2.lvd142m`, asks
    for those weights.
    """
    plugin, dot, part = text.partition(".")
    if dot and registry.knows(plugin) and NAME.fullmatch(part) and Path(text).suffix not in (".json", *WEIGHT_SUFFIXES):
        return text, {}
    is_timm = text.startswith(TIMM)
    model, pretrained = model_and_tag(text.removeprefix(TIMM))
    if is_timm or _is_timms(model):
        brings_its_own = model.startswith(("hf-hub:", "local-dir:"))
        asked = True if pretrained is None and "." in model and not brings_its_own else pretrained
        return "core.timm", {"model": model, "pretrained": asked}
    return "core.open_clip", {"model": model, "pretrained": pretrained}


def _is_timms(model: str) -> bool:
    if model.startswith("local-dir:"):
        return _names_architecture(Path(model.removeprefix("local-dir:")).expanduser() / "config.json")
    is_file = Path(model).suffix in (".json", *WEIGHT_SUFFIXES)
    return not is_file and _TIMM_NAME.fullmatch(model) is not None and config_at_hand(model) is None


def _names_architecture(config: Path) -> bool:
    """Whether a folder is timm's: both libraries have a config there, but open_clip's names no architecture."""
    if config.with_name("open_clip_config.json").is_file():
        return False
    try:
        return "architecture" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
