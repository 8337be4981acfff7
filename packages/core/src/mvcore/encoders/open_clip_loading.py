"""Finds and loads an open_clip model by name, tag, file or folder, and says in one line why it cannot."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from mvcore.encoders.library import loading, one_line
from mvcore.errors import WeightsError
from mvcore.paths import PACKAGE, WEIGHT_SUFFIXES, resolve_path
from mvcore.suggest import did_you_mean

_SCHEMAS = ("hf-hub:", "local-dir:")


@dataclass(frozen=True)
class LoadedClip:
    """An open_clip model as the library made it.

    Args:
        model: the library's module, on the CPU in float32.
        embed_dim: width of the space that images and texts share.
        tokenizer: makes the model's tokenizer; what cannot be had raises WeightsError when it is called.
        config: the library's own model config.
    """

    model: nn.Module
    embed_dim: int
    tokenizer: Callable[[], Callable[[list[str]], Any]]
    config: Mapping[str, Any]


def load_open_clip(model: str, pretrained: str | None) -> LoadedClip:
    """Loads a model; see `OpenClipOptions` for what the two names may be.

    Raises:
        WeightsError: unknown model or tag, unreadable or unfitting weights, or no way to the hub.
    """
    if model.startswith(_SCHEMAS):
        return _load_with_schema(model, pretrained)
    name, preprocess = _registered_name(model)
    weights = resolve_weights(name, model, pretrained)
    hub = weights is not None and not Path(weights).is_file()
    return _create(name, model, weights, hub=hub, force_preprocess_cfg=dict(preprocess) or None)


def _load_with_schema(model: str, pretrained: str | None) -> LoadedClip:
    if pretrained is not None:
        raise WeightsError(f"{model} brings its own weights; set pretrained to null instead of {pretrained!r}")
    name = model
    if model.startswith("local-dir:"):
        folder = resolve_path(model.removeprefix("local-dir:"), what="model folder", error=WeightsError)
        name = f"local-dir:{folder}"
        if not (folder / "open_clip_config.json").is_file():
            raise WeightsError(f"{folder} holds no open_clip_config.json, so it is not an open_clip model folder")
    # Without require_pretrained a failed download of the weights would leave random ones behind.
    return _create(name, model, None, hub=model.startswith("hf-hub:"), require_pretrained=True)


def _registered_name(model: str) -> tuple[str, Mapping[str, Any]]:
    """The name under which open_clip knows the model, and the preprocessing that its config file asks for."""
    if model.endswith(".json") or model.startswith(PACKAGE):
        return _register_file(resolve_path(model, what="model config", error=WeightsError))
    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        raise WeightsError(f"open_clip has no model {model!r}{did_you_mean(name, open_clip.list_models())}")
    return name, {}


def _register_file(path: Path) -> tuple[str, Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content.get("model_cfg", content)
        preprocess = content.get("preprocess_cfg", {})
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path} is not an open_clip model config: {one_line(error)}") from error
    if missing:
        raise WeightsError(f"{path} is not an open_clip model config: it lacks {', '.join(missing)}")
    # Named by content: a file called ViT-B-32.json must not replace the library's own model of that name.
    text = json.dumps(config, sort_keys=True)
    name = f"mvcore-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / f"{name}.json"
            copy.write_text(text, encoding="utf-8")
            open_clip.add_model_config(copy)
    return name, preprocess


def resolve_weights(name: str, model: str, pretrained: str | None) -> str | None:
    """The tag or the checked path of a weight file.

    Args:
        name: the name under which open_clip knows the model.
        model: the name that the user gave, for the text of errors.
        pretrained: a tag, a path, or None.

    Raises:
        WeightsError: an unknown tag, a missing file, or weights for another activation than the model's.
    """
    if pretrained is None:
        return None
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag:
        _check_activation(name, model, pretrained, tag)
        return pretrained
    is_path = pretrained.startswith((PACKAGE, "~", ".", "/")) or Path(pretrained).exists()
    if not is_path and not pretrained.endswith(WEIGHT_SUFFIXES):
        tags = open_clip.list_pretrained_tags_by_model(name)
        has = f"; it has: {', '.join(tags)}" if tags else "; it has none, so give a weight file or null"
        raise WeightsError(f"model {model} has no weights {pretrained!r}{did_you_mean(pretrained, tags) or has}")
    path = resolve_path(pretrained, what="weight file", error=WeightsError)
    if not path.is_file() or path.suffix not in WEIGHT_SUFFIXES:
        raise WeightsError(f"{path} is not a weight file; mvcore reads {', '.join(WEIGHT_SUFFIXES)}")
    return str(path)


def _check_activation(name: str, model: str, tag_name: str, tag: Mapping[str, Any]) -> None:
    wanted = bool(tag.get("quick_gelu", False))
    other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
    if bool(_config(name).get("quick_gelu", False)) == wanted or other == name or other not in open_clip.list_models():
        return
    activation = "QuickGELU" if wanted else "GELU"
    raise WeightsError(f"weights {tag_name!r} were trained with {activation}, {model} has not; use model {other}")


def _create(name: str, model: str, weights: str | None, *, hub: bool, **options: Any) -> LoadedClip:
    with loading(f"{model} with weights {weights}" if weights else model, hub=hub):
        network = open_clip.create_model(name, weights, weights_only=True, pretrained_text=False, **options)
        config = _config(name)
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    return LoadedClip(network, int(config["embed_dim"]), partial(_tokenizer, name, model, tokenizer), config)


def _config(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if config is None:
        raise WeightsError(f"open_clip has no config for {name}")
    return config


def _tokenizer(name: str, model: str, wanted: str | None) -> Callable[[list[str]], Any]:
    hub = name.startswith("hf-hub:") or (wanted is not None and not name.startswith("local-dir:"))
    with loading(f"the tokenizer {wanted or ''} of {model}", hub=hub):
        return open_clip.get_tokenizer(name)
