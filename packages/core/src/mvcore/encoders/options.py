"""Options of core's backbones. Imports neither torch nor the model libraries."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from mvcore.config_base import Options
from mvcore.errors import DataError
from mvcore.paths import PACKAGE, resolve_path

SCALES = frozenset({"logit_scale", "logit_bias"})
_TRAIN = re.compile(r"none|all|last:[1-9][0-9]*")


def _checked_mode(train: str) -> str:
    if not _TRAIN.fullmatch(train):
        raise ValueError(f"train must be none, all or last:N (N blocks, at least 1), not {train!r}")
    return train


class DenseOptions(Options):
    """Where the feature `dense` (N, C, h, w) is taken.

    Args:
        layer: index of the vision block whose output it is, negative from the end; None = the tower's final map, after
            its final norm where that norm acts on patches.
        space: `visual` is the tower's own width; `text` projects each patch into the space of the texts, the way the
            pooled vector goes (only where the model has such a way, and only from the final map).
        patches: patches along each side of the map, by a pass of its own over the images at another size, with
            positions resampled (class-token ViTs only); None = the model's own, in the same pass as `view`.
    """

    layer: int | None = None
    space: Literal["visual", "text"] = "visual"
    patches: int | None = Field(default=None, ge=1)

    @field_validator("space")
    @classmethod
    def _only_final(cls, space: str, info: object) -> str:
        if space == "text" and getattr(info, "data", {}).get("layer") is not None:
            raise ValueError("space: text is a projection of the final map; leave layer out")
        return space


class OpenClipOptions(Options):
    """Options of `core.open_clip`.

    Args:
        model: an open_clip name (`ViT-B-32`), `hf-hub:org/repo`, `local-dir:folder`, or a JSON model config (a path or
            `package:pkg/file.json`).
        pretrained: a tag of the model (`laion2b_s34b_b79k`), a file of weights (safetensors or torch; a path or
            `package:pkg/file`), or null for random weights. `hf-hub:` and `local-dir:` bring their own.
        train: what of the model trains: `none`, `all`, or `last:N`, the last N blocks of the vision tower and what
            follows them.
        dense: where the feature `dense` is taken.
        text_cache: keep the embeddings of captions while the text tower is frozen.
        text_cache_mb: how much device memory they may take, in MB (10^6 bytes).
        embeddings: the tag of vectors of this very model that `mvcore data embed` stored beside the stores: captions
            are taken from there in the place of encoding them, and so are the views when the untouched model is
            measured. null = everything is encoded.
    """

    model: str = Field("ViT-B-32", examples=["package:mvcore/testing/clip.json"])
    pretrained: str | None = None
    train: str = "none"
    dense: DenseOptions = DenseOptions()
    text_cache: bool = True
    text_cache_mb: int = Field(default=1024, ge=1)
    embeddings: str | None = Field(default=None, min_length=1)

    @field_validator("model")
    @classmethod
    def _named(cls, model: str) -> str:
        if not model.strip():
            raise ValueError("model is empty; write an open_clip name such as ViT-B-32")
        return model

    @field_validator("train")
    @classmethod
    def _known_mode(cls, train: str) -> str:
        return _checked_mode(train)

    def provides(self) -> frozenset[str]:
        """The features that the model can give, as far as its config is at hand without loading anything."""
        features = frozenset({"view", "text", "dense", "logit_scale"})
        config = config_at_hand(self.model)
        has_bias = config is None or config.get("init_logit_bias") is not None
        return features | {"logit_bias"} if has_bias else features

    def wanted_size(self) -> int | None:
        """The side of the images that the model wants, as far as its config is at hand without loading anything."""
        vision = (config_at_hand(self.model) or {}).get("vision_cfg")
        size = vision.get("image_size") if isinstance(vision, dict) else None
        return size if isinstance(size, int) else None


class TimmDenseOptions(Options):
    """Where the feature `dense` (N, C, h, w) of a timm model is taken.

    Args:
        layer: index of the block (a hierarchical model's stage) whose output it is, negative from the end; None = the
            model's final map.
        norm: whether the model's final norm acts on it; None = on the final map and on no other. `layer: -1` is thus
            the last block's output before the norm, and `layer: -4, norm: true` what DINOv2 gives of a middle block.
    """

    layer: int | None = None
    norm: bool | None = None


class TimmOptions(Options):
    """Options of `core.timm`.

    Args:
        model: a timm name, with a tag or without (`vit_base_patch14_dinov2.lvd142m`), `hf-hub:org/repo` or
            `local-dir:folder`.
        pretrained: true for the weights of the model's tag or its first one, a tag, a file of weights (safetensors or
            torch; a path or `package:pkg/file`), or null for random weights. `hf-hub:` and `local-dir:` bring their
            own.
        train: what of the model trains: `none`, `all`, or `last:N`, the last N blocks and what follows them.
        image_size: side of the square images that sources give; null = the model's own. Another than its own only
            where the model can resample its positions, or has none.
        patches: how many patches the longer side of an image is divided into, by resizing the image on the device
            before the first layer; null = as many as fit into `image_size`. The shorter side has as many as fit.
        stride: pixels between patches, a divisor of the patch's side; null = the patch's side. With half of it the map
            has about twice the rows and columns, and a pass takes 4 times the tokens.
        positions: how position embeddings are resampled to another grid than the model's own: as `timm` does, or as the
            code of DINOv2's first models, without registers, does (`dinov2`), by a ratio that is 0.1 patches too large.
        dense: where the feature `dense` is taken.
    """

    model: str = Field(examples=["test_vit"])
    pretrained: bool | str | None = None
    train: str = "none"
    image_size: int | None = Field(default=None, ge=1)
    patches: int | None = Field(default=None, ge=1)
    stride: int | None = Field(default=None, ge=1)
    positions: Literal["timm", "dinov2"] = "timm"
    dense: TimmDenseOptions = TimmDenseOptions()

    @field_validator("model")
    @classmethod
    def _named(cls, model: str) -> str:
        if not model.strip():
            raise ValueError("model is empty; write a timm name such as vit_small_patch14_dinov2.lvd142m")
        return model

    @field_validator("train")
    @classmethod
    def _known_mode(cls, train: str) -> str:
        return _checked_mode(train)

    def wanted_size(self) -> int | None:
        """The side of the images that sources must give; None where only the model knows it."""
        return self.image_size


class StoredFeaturesOptions(Options):
    """Options of `core.embeddings`.

    Args:
        tag: the name under which the sources give the vectors, as in their `embeddings: [NAME]`.
        width: dimensions of the vectors of views.
        text_width: dimensions of the vectors of texts, where they are others.
        text_encoder: an encoder, `id` and its options, for texts that have no stored vector, as a prompt in an
            evaluation, and for the features `logit_scale` and `logit_bias`; it must be the model that made the stored
            ones. null = such texts are refused.
        train: `none`; stored vectors do not train.
    """

    tag: str = Field(min_length=1, examples=["toy"])
    width: int = Field(ge=1, examples=[16])
    text_width: int | None = Field(default=None, ge=1)
    text_encoder: dict[str, Any] | None = None
    train: Literal["none"] = "none"

    @field_validator("text_encoder")
    @classmethod
    def _has_id(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not isinstance(value.get("id"), str):
            raise ValueError("write an encoder with its id and options, as {id: core.open_clip, model: ViT-B-32}")
        return value

    def needs(self) -> frozenset[str]:
        """What it reads in the place of images."""
        return frozenset({"embeddings"})

    def provides(self) -> frozenset[str]:
        """Views and texts, and the scale that the text encoder's model learnt for them."""
        own = frozenset({"view", "text"})
        if self.text_encoder is None:
            return own
        from mvcore import build
        from mvcore.plugins import load_plugins

        args = {key: value for key, value in self.text_encoder.items() if key != "id"}
        registered = load_plugins().spec("encoder", self.text_encoder["id"])
        chosen = build.options(registered, args, "encoder.text_encoder")
        return own | build.provides_of(registered, chosen) & SCALES


def config_at_hand(model: str) -> dict[str, Any] | None:
    """A model's config from a JSON file or the library's folder, found without importing torch; None if elsewhere."""
    if model.startswith(("hf-hub:", "local-dir:")):
        return None
    if model.endswith(".json") or model.startswith(PACKAGE):
        try:
            path = resolve_path(model)
        except DataError:
            return None
    else:
        spec = importlib.util.find_spec("open_clip")
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0] if folders else "") / "model_configs" / f"{model.replace('/', '-')}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content.get("model_cfg", content)
    except (OSError, ValueError, AttributeError):
        return None
