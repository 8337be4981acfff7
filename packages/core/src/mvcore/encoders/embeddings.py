"""`core.embeddings`: stored vectors as the backbone of a run, so that heads train without an image or an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mvcore.encoders.options import SCALES
from mvcore.encoders.text_cache import on_device, with_stored
from mvcore.errors import ConfigError, DataError
from mvcore.model_key import backbone_key
from mvcore.parts import Backbone, StoredEmbeddings, StoredTexts
from mvcore.types import ViewBatch


class StoredFeatures(Backbone):
    """The features `view` and `text` out of `batch.embeddings["<tag>/image"]` and `["<tag>/text"]`, in float32.

    Nothing trains here, and no image is read. Texts that come without stored vectors, as the prompts of a
    classification do, are encoded by `text_encoder`, frozen, which gives its `logit_scale` and `logit_bias` besides.

    Args:
        tag, width, text_width, text_encoder, train: see `StoredFeaturesOptions`.

    Attributes:
        other_texts: encodes texts that no vector is stored for, where there is no `text_encoder`; None = they are
            refused.

    Raises:
        ConfigError: a text encoder whose vectors are not as wide as the stored ones, or one without texts.
    """

    library = "embeddings"
    image_size = None
    _place: Tensor

    def __init__(
        self,
        tag: str,
        width: int,
        text_width: int | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        train: str = "none",
    ) -> None:
        super().__init__()
        self.set_trainable(train)
        self.tag = tag
        self.dims = {"view": width, "text": text_width or width}
        self._stored_texts: list[StoredTexts] = []
        self.text_encoder = None if text_encoder is None else self._built(text_encoder)
        scales = frozenset() if self.text_encoder is None else self.text_encoder.provides & SCALES
        self.provides = frozenset({"view", "text"}) | scales
        self._library = nn.Module() if self.text_encoder is None else self.text_encoder.model
        self.other_texts: Callable[[Sequence[str]], Tensor] | None = None
        # Without weights a module does not know its device.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def model(self) -> nn.Module:
        """The text encoder's module; without one, a module that holds nothing."""
        return self._library

    @property
    def device(self) -> torch.device:
        return self._place.device

    def train(self, mode: bool = True) -> StoredFeatures:
        """Training mode for none of it: a text encoder here is frozen."""
        super().train(mode)
        if self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    def set_trainable(self, mode: str) -> None:
        if mode != "none":
            raise ConfigError(f"core.embeddings: stored vectors cannot train; train must be none, not {mode!r}")

    def connect(self, sources: Mapping[str, Any]) -> None:
        """Finds stored texts, and refuses vectors of other widths or of another model than the text encoder.

        Raises:
            ConfigError: another width; the text says which to set.
            DataError: another model; the text says what differs.
        """
        key = {} if self.text_encoder is None else backbone_key(self.text_encoder)
        self._stored_texts = []
        for name, source in sources.items():
            if not isinstance(source, StoredEmbeddings):
                continue
            widths = source.stored_embeddings(self.tag)
            for kind, feature, option in (("image", "view", "width"), ("text", "text", "text_width")):
                if kind in widths and widths[kind] != self.dims[feature]:
                    raise ConfigError(
                        f"encoder.{option} is {self.dims[feature]}, but '{self.tag}/{kind}' of source {name!r} is "
                        f"{widths[kind]} wide; set encoder.{option}={widths[kind]}"
                    )
            if widths:
                source.check_stored(self.tag, key)
                # Sources that say what made their vectors are held to the first one's model.
                key = key or getattr(source, "stored_model", lambda tag: {})(self.tag)
            if "text" in widths:
                self._stored_texts.append(source.stored_texts(self.tag, key))

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        """The features `keys` of a batch.

        Raises:
            ConfigError: a feature that it does not have, or vectors of another width.
            DataError: the batch holds no such vectors, and no text encoder can make them.
        """
        if unknown := keys - self.provides:
            has = ", ".join(sorted(self.provides))
            raise ConfigError(f"core.embeddings has no feature {', '.join(sorted(unknown))} (it has: {has})")
        features: dict[str, Tensor] = {}
        if "view" in keys:
            features["view"] = self._stored(batch, "image")
        if "text" in keys:
            stored = f"{self.tag}/text" in batch.embeddings
            features["text"] = self._stored(batch, "text") if stored else self.encode_text(batch.captions)
        if self.text_encoder is not None and (scales := keys & SCALES):
            features |= self.text_encoder.encode(batch, scales)
        return features

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """(T, D) vectors of T texts: the stored ones of the sources' captions, the others by the text encoder.

        Raises:
            DataError: there is no text encoder.
        """
        unique = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        vectors = with_stored(
            list(unique), self._stored_texts, self._encode_others, width=self.dims["text"], device=self.device
        )
        return vectors.index_select(0, on_device([unique[caption] for caption in captions], self.device))

    def _encode_others(self, captions: list[str]) -> Tensor:
        if self.text_encoder is None and self.other_texts is not None:
            return self.other_texts(captions)
        if self.text_encoder is None:
            raise DataError(
                f"core.embeddings: no vector is stored for the text {captions[0]!r}; store texts with 'mvcore data "
                f"embed --on image,text --tag {self.tag}', or name a text_encoder"
            )
        with torch.no_grad():
            batch = ViewBatch.make(
                [1],
                captions=tuple(captions),
                caption_object=torch.zeros(len(captions), dtype=torch.int64),
                caption_view=torch.full((len(captions),), -1),
            )
            return self.text_encoder.encode(batch, frozenset({"text"}))["text"]

    def _stored(self, batch: ViewBatch, kind: str) -> Tensor:
        name, feature = f"{self.tag}/{kind}", "view" if kind == "image" else "text"
        if name not in batch.embeddings:
            has = ", ".join(sorted(batch.embeddings)) or "none"
            raise DataError(
                f"core.embeddings makes {feature} from the stored vectors {name!r}, which the batch lacks (it has: "
                f"{has}); name the tag under the source's embeddings, and make it with 'mvcore data embed'"
            )
        stored = batch.embeddings[name].to(self.device, torch.float32, non_blocking=True)
        if stored.ndim != 2 or stored.shape[1] != self.dims[feature]:
            option = "width" if kind == "image" else "text_width"
            raise ConfigError(
                f"encoder.{option} is {self.dims[feature]}, but {name!r} is {stored.shape[-1]} wide; set "
                f"encoder.{option}={stored.shape[-1]}"
            )
        return stored

    def _built(self, part: Mapping[str, Any]) -> Backbone:
        from mvcore.loading import load_encoder

        encoder = load_encoder(part["id"], {key: value for key, value in part.items() if key != "id"}).backbone
        if "text" not in encoder.provides:
            raise ConfigError(f"text_encoder: {part['id']} encodes no text")
        if encoder.dims["text"] != self.dims["text"]:
            raise ConfigError(
                f"text_encoder: {part['id']} gives vectors of width {encoder.dims['text']}, the stored ones have "
                f"{self.dims['text']}"
            )
        return encoder
