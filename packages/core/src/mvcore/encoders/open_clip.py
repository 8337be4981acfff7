"""`core.open_clip`: an unmodified open_clip model as the backbone of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from mvcore.dense_grid import DenseGrid
from mvcore.encoders.image_backbone import ImageBackbone
from mvcore.encoders.open_clip_loading import load_open_clip
from mvcore.encoders.options import DenseOptions
from mvcore.encoders.text_cache import TextCache, on_device, with_stored
from mvcore.encoders.towers import vision_tower
from mvcore.errors import ConfigError, DataError
from mvcore.parts import StoredEmbeddings, StoredTexts
from mvcore.types import ViewBatch

_TOKENS_AT_ONCE = (512, 16384)
"""Of frozen captions, on the CPU and on an accelerator."""
_TOKEN_CACHE = 200_000


class OpenClip(ImageBackbone):
    """Features of an open_clip model: `view`, `text`, `dense`, `logit_scale` and, where it has one, `logit_bias`.

    Vectors are as the model gives them, not normalised. Equal captions of a batch are encoded once; while the text
    tower is frozen their embeddings are kept, in float32, and cost nothing from the second time on.

    Args:
        model, pretrained, train, dense, text_cache, text_cache_mb, embeddings: see `OpenClipOptions`.

    Raises:
        WeightsError: unknown model or tag, unreadable or unfitting weights, or no way to the hub.
        ConfigError: a layer, space or number of blocks that the model has not.
        PluginError: a vision tower of an unknown class.
    """

    library = "open_clip"

    def __init__(
        self,
        model: str = "ViT-B-32",
        pretrained: str | None = None,
        train: str = "none",
        dense: DenseOptions | dict[str, Any] | None = None,
        text_cache: bool = True,
        text_cache_mb: int = 1024,
        embeddings: str | None = None,
    ) -> None:
        super().__init__()
        loaded = load_open_clip(model, pretrained)
        self.clip: Any = loaded.model
        visual = self.clip.visual
        self._set_up(model, visual, visual.image_mean, visual.image_std, never=("text_decoder.",))
        self._make_tokenizer = loaded.tokenizer
        self._config = loaded.config
        self.image_size = self._square_size()
        self._tower = vision_tower(
            visual, model, dense if isinstance(dense, DenseOptions) else DenseOptions(**(dense or {}))
        )
        self._tower.check_dense()
        width = loaded.embed_dim
        dense_width = width if self._tower.dense.space == "text" else self._tower.map_width()
        self.dims = {"view": width, "text": width, "dense": dense_width}
        bias = {"logit_bias"} if self.clip.logit_bias is not None else set[str]()
        self.provides = frozenset({"view", "text", "dense", "logit_scale"} | bias)
        self._text_parts, self._text_loose = self._text_tower()
        self._text_cache = TextCache(width, text_cache_mb * 1_000_000) if text_cache else None
        self.embeddings = embeddings
        self._stored_texts: list[StoredTexts] = []
        self._untouched_text = self._text_marks()
        self._tokens: dict[str, Tensor] = {}
        self.set_trainable(train)

    @property
    def model(self) -> nn.Module:
        return self.clip

    def library_config(self) -> dict[str, Any]:
        """What open_clip needs to make the model again from a folder: `open_clip_config.json`."""
        return {"model_cfg": dict(self._config), "preprocess_cfg": open_clip.get_model_preprocess_cfg(self.clip)}

    def connect(self, sources: Mapping[str, Any]) -> None:
        """Finds the stored vectors of captions that `embeddings` asks for.

        Raises:
            DataError: no source has any, or they are of another model.
        """
        if self.embeddings is None:
            return
        having = {
            name: source
            for name, source in sources.items()
            if isinstance(source, StoredEmbeddings) and source.stored_embeddings(self.embeddings)
        }
        if not having:
            raise DataError(
                f"encoder.embeddings: no source has vectors under the tag {self.embeddings!r} ({', '.join(sources)} "
                "looked at); make them with 'mvcore data embed', or leave encoder.embeddings out"
            )
        self._stored_texts = [
            source.stored_texts(self.embeddings, self.untouched_key)
            for source in having.values()
            if "text" in source.stored_embeddings(self.embeddings)
        ]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self._tower.blocks

    def last_blocks(self, count: int) -> list[nn.Module | nn.Parameter]:
        return self._tower.last_blocks(count)

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        if width != self.image_size or height != self.image_size:
            size = f"{self.image_size}x{self.image_size}"
            raise ConfigError(f"images are {width}x{height} but {self.name} takes {size}; set image_size")
        return self._tower.grid(width)

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """The model's own tokenizer: texts -> (T, context) int64.

        Raises:
            WeightsError: it must come from the hub and cannot.
        """
        return self._make_tokenizer()

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        """The features `keys` of a batch; `view` and `dense` share one pass.

        Raises:
            ConfigError: a feature that the model has not, or images of another size than it takes.
            DataError: no images in the batch.
        """
        self._check_keys(keys)
        features: dict[str, Tensor] = {}
        crossing = keys & self._branches.keys
        if crossing:
            features |= self._branches.encode(lambda: self._pixels(batch, keys), batch, crossing, view="view" in keys)
        own = (keys & {"view", "dense"}) - features.keys()
        if own:
            features |= self._encode_images(self._pixels(batch, own), own)
        if "text" in keys:
            features["text"] = self.encode_text(batch.captions)
        for key in keys & {"logit_scale", "logit_bias"}:
            features[key] = getattr(self.clip, key).reshape(())
        return features

    def _encode_images(self, pixels: Tensor, keys: frozenset[str]) -> dict[str, Tensor]:
        if "dense" not in keys:
            # CoCa normalises unless it is told not to.
            return {"view": self.clip.encode_image(pixels, normalize=False)}
        view, dense = self._tower.encode(pixels, view="view" in keys)
        return {"dense": dense} if view is None else {"view": view, "dense": dense}

    def _fitted(self, pixels: Tensor) -> Tensor:
        self._check_square(pixels)
        return pixels

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """(T, D) embeddings of T captions; each distinct one is encoded once."""
        if not captions:
            return torch.zeros(0, self.dims["text"], device=self.device)
        state = self._frozen_text_state() if self._text_cache is not None else None
        if self._text_cache is not None and state is not None:
            return self._text_cache.get(captions, self._encode_frozen, device=self.device, valid_for=state)
        if self._text_cache is not None:
            self._text_cache.clear()
        unique = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        embedded = self._encode_distinct(list(unique))
        if len(unique) == len(captions):
            return embedded
        return embedded.index_select(0, on_device([unique[caption] for caption in captions], self.device))

    def _encode_distinct(self, captions: list[str]) -> Tensor:
        tokens = self._tokenised(captions)
        if self.device.type == "cuda":
            tokens = tokens.pin_memory()
        return self.clip.encode_text(tokens.to(self.device, non_blocking=True), normalize=False)

    def _encode_frozen(self, captions: list[str]) -> Tensor:
        """As `_encode_distinct`, in full precision, each caption once: from the store where its vector is there."""
        if not self._stored_texts or self._text_marks() != self._untouched_text:
            return self._encode_in_pieces(captions)
        return with_stored(
            captions, self._stored_texts, self._encode_in_pieces, width=self.dims["text"], device=self.device
        )

    def _encode_in_pieces(self, captions: list[str]) -> Tensor:
        """In full precision and pieces of one size.

        What a matrix product gives for a row depends in the last bit on how many rows there are. In pieces of one size,
        the last one filled up, an embedding depends on its caption alone, so that a resumed run, which fills its cache
        in another order, gets the same.
        """
        size = math.ceil(_TOKENS_AT_ONCE[self.device.type != "cpu"] / self._tokenised(captions[:1]).shape[1])
        parts = [captions[at : at + size] for at in range(0, len(captions), size)]
        with torch.autocast(self.device.type, enabled=False):
            embedded = [self._encode_distinct([*part, *part[:1] * (size - len(part))]) for part in parts]
        return torch.cat(embedded)[: len(captions)]

    def _tokenised(self, captions: list[str]) -> Tensor:
        """(T, context) int64 on the host; the tokenizer is Python, so what it gave is kept, as int32."""
        fresh = [caption for caption in captions if caption not in self._tokens]
        if fresh:
            if len(self._tokens) + len(fresh) > _TOKEN_CACHE:
                self._tokens.clear()
                fresh = captions
            self._tokens.update(zip(fresh, self.tokenizer(fresh).to(torch.int32), strict=True))
        return torch.stack([self._tokens[caption] for caption in captions]).long()

    def _text_tower(self) -> tuple[list[nn.Module], list[nn.Parameter]]:
        """What makes text embeddings: modules and loose parameters."""
        if hasattr(self.clip, "text"):
            return [self.clip.text], []
        modules = [child for name, child in self.clip.named_children() if name != "visual"]
        loose = [p for n, p in self.clip.named_parameters(recurse=False) if n not in ("logit_scale", "logit_bias")]
        return modules, loose

    def _frozen_text_state(self) -> object:
        """What cached embeddings depend on, or None while a text weight trains; changes when a weight is written to."""
        versions = 0
        for parameters in (self._text_loose, *(part.parameters() for part in self._text_parts)):
            for parameter in parameters:
                if parameter.requires_grad:
                    return None
                versions += parameter._version
        return self.device, versions

    def _text_marks(self) -> tuple[tuple[int, int], ...]:
        """Changes when a text weight is replaced or written to, but not when it is moved to another device."""
        parameters = chain(self._text_loose, *(part.parameters() for part in self._text_parts))
        return tuple((id(parameter), parameter._version) for parameter in parameters)

    def _square_size(self) -> int:
        size = self.clip.visual.image_size
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise ConfigError(f"{self.name} takes images of {size}; core.open_clip needs square ones")
        return int(sides.pop())
