"""Finds and loads a timm model by name, tag, file or folder, and says in one line why it cannot."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import timm.models
from timm.models import load_state_dict
from timm.models._hub import load_state_dict_from_path
from torch import nn

from mvcore.encoders.library import loading
from mvcore.errors import WeightsError
from mvcore.paths import PACKAGE, WEIGHT_SUFFIXES, resolve_path
from mvcore.suggest import did_you_mean


def load_timm(model: str, pretrained: bool | str | None) -> nn.Module:
    """Loads a model without its classifier, with weights that fit it exactly; see `TimmOptions` for the two names.

    A vision transformer is made so that it resamples its positions to the size of the images; at its own size that
    changes nothing.

    Raises:
        WeightsError: unknown model or tag, unreadable or unfitting weights, or no way to the hub.
    """
    if model.startswith("local-dir:"):
        _brings_its_own(model, pretrained)
        folder = resolve_path(model.removeprefix("local-dir:"), what="model folder", error=WeightsError)
        _check_folder(folder)
        with loading(model, hub=False):
            network = _create(f"local-dir:{folder}")
            _fill(network, load_state_dict_from_path(folder))
        return network
    if model.startswith("hf-hub:"):
        _brings_its_own(model, pretrained)
        with loading(model, hub=True):
            return _create(model, pretrained=True)
    base, _, tag = model.partition(".")
    if not timm.is_model(base):
        raise WeightsError(f"timm has no model {model!r}{did_you_mean(base, timm.list_models())}")
    if tag:
        _check_tag(base, tag, model)
    if not pretrained:
        with loading(model, hub=False):
            return _create(model)
    if pretrained is True or _is_tag(base, pretrained):
        return _tagged(model, base, tag, pretrained)
    path = _weight_file(base, model, pretrained)
    with loading(f"{model} with weights {path}", hub=False):
        network = _create(model)
        _fill(network, load_state_dict(str(path)))
    return network


def _brings_its_own(model: str, pretrained: bool | str | None) -> None:
    if pretrained not in (None, True):
        raise WeightsError(f"{model} brings its own weights; set pretrained to null instead of {pretrained!r}")


def _check_folder(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = config["architecture"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(
            f"{folder} holds no config.json that names an architecture, so it is no timm model"
        ) from None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise WeightsError(f"{folder}: timm has no architecture {architecture!r}")


def _tags(base: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]


def _is_tag(base: str, text: str) -> bool:
    return text in _tags(base)


def _check_tag(base: str, tag: str, model: str) -> None:
    tags = _tags(base)
    if tag not in tags:
        has = f"; it has: {', '.join(tags)}" if tags else "; it has none"
        raise WeightsError(f"{model}: timm's {base} has no weights {tag!r}{did_you_mean(tag, tags) or has}")


def _tagged(model: str, base: str, tag: str, pretrained: bool | str) -> nn.Module:
    if isinstance(pretrained, str):
        if tag and tag != pretrained:
            raise WeightsError(f"{model} names the weights {tag!r} and pretrained others, {pretrained!r}; name one")
        model = f"{base}.{pretrained}"
    if not _tags(base):
        raise WeightsError(f"timm has no weights of {base}; give a weight file or null")
    with loading(f"{model} with its weights", hub=True):
        return _create(model, pretrained=True)


def _weight_file(base: str, model: str, pretrained: str) -> Path:
    is_path = pretrained.startswith((PACKAGE, "~", ".", "/")) or Path(pretrained).exists()
    if not is_path and not pretrained.endswith(WEIGHT_SUFFIXES):
        tags = _tags(base)
        has = f"; it has: {', '.join(tags)}" if tags else "; it has none, so give a weight file or null"
        raise WeightsError(f"model {model} has no weights {pretrained!r}{did_you_mean(pretrained, tags) or has}")
    path = resolve_path(pretrained, what="weight file", error=WeightsError)
    if not path.is_file() or path.suffix not in WEIGHT_SUFFIXES:
        raise WeightsError(f"{path} is not a weight file; mvcore reads {', '.join(WEIGHT_SUFFIXES)}")
    return path


def _create(name: str, *, pretrained: bool = False) -> nn.Module:
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError as error:
        # Only vision transformers know the argument; the others say so before anything is made or fetched.
        if "dynamic_img_size" not in str(error):
            raise
    return timm.create_model(name, **options)


def _fill(network: Any, state: Mapping[str, Any]) -> None:
    """Weights of a file, in timm's names or in those of the model's authors that timm knows; all of them, exactly."""
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    state = dict(translate(dict(state), network) if translate is not None else state)
    classifiers = network.pretrained_cfg.get("classifier") or ()
    for name in (classifiers,) if isinstance(classifiers, str) else classifiers:
        # The model is made without one.
        for part in ("weight", "bias"):
            state.pop(f"{name}.{part}", None)
    network.load_state_dict(state, strict=True)
