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

from mvcore.encoders.attention_sites import AttentionSite, attention_sites
from mvcore.encoders.branches import Branches, Known, Run
from mvcore.encoders.open_clip_loading import load_open_clip
from mvcore.encoders.options import DenseOptions
from mvcore.encoders.text_cache import TextCache, on_device, with_stored
from mvcore.encoders.towers import vision_tower
from mvcore.errors import ConfigError, DataError
from mvcore.parts import Backbone, StoredEmbeddings, StoredTexts
from mvcore.types import ViewBatch

_TOKENS_AT_ONCE = (512, 16384)
"""Of frozen captions, on the CPU and on an accelerator."""
_TOKEN_CACHE = 200_000


class OpenClip(Backbone):
    """Features of an open_clip model: `view`, `text`, `dense`, `logit_scale` and, where it has one, `logit_bias`.

    Images come in as uint8 and are normalised on the device with the model's own mean and deviation. Vectors are as the
    model gives them, not normalised. Equal captions of a batch are encoded once; while the text tower is frozen their
    embeddings are kept, in float32, and cost nothing from the second time on. What does not train stays in eval mode.
    With parametrized weights (LoRA) the caller encodes inside `torch.nn.utils.parametrize.cached()`.

    Args:
        model, pretrained, train, dense, text_cache, text_cache_mb, embeddings: see `OpenClipOptions`.

    Raises:
        WeightsError: unknown model or tag, unreadable or unfitting weights, or no way to the hub.
        ConfigError: a layer, space or number of blocks that the model has not.
        PluginError: a vision tower of an unknown class.
    """

    library = "open_clip"
    _mean: Tensor
    _std: Tensor

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
        self.name = model
        self.clip: Any = loaded.model
        self._make_tokenizer = loaded.tokenizer
        self._config = loaded.config
        self.image_size = self._square_size()
        self._tower = vision_tower(
            self.clip.visual, model, dense if isinstance(dense, DenseOptions) else DenseOptions(**(dense or {}))
        )
        self._tower.check_dense()
        self._branches = Branches(self.clip.visual, model)
        self._preprocessing: list[Callable[[Tensor], Tensor]] = []
        width = loaded.embed_dim
        dense_width = width if self._tower.dense.space == "text" else self._tower.map_width()
        self.dims = {"view": width, "text": width, "dense": dense_width}
        bias = {"logit_bias"} if self.clip.logit_bias is not None else set[str]()
        self.provides = frozenset({"view", "text", "dense", "logit_scale"} | bias)
        for name, values in (("_mean", self.clip.visual.image_mean), ("_std", self.clip.visual.image_std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        # What the library itself keeps fixed (a sine position table) and what gives no feature never trains.
        self._can_train = {
            parameter: parameter.requires_grad and not name.startswith("text_decoder.")
            for name, parameter in self.clip.named_parameters()
        }
        self._text_parts, self._text_loose = self._text_tower()
        self._text_cache = TextCache(width, text_cache_mb * 1_000_000) if text_cache else None
        self.embeddings = embeddings
        self._stored_texts: list[StoredTexts] = []
        self._untouched_text = self._text_marks()
        self._tokens: dict[str, Tensor] = {}
        self._active: list[nn.Module] = []
        self.set_trainable(train)

    @property
    def model(self) -> nn.Module:
        return self.clip

    def library_config(self) -> dict[str, Any]:
        """What open_clip needs to make the model again from a folder: `open_clip_config.json`."""
        return {"model_cfg": dict(self._config), "preprocess_cfg": open_clip.get_model_preprocess_cfg(self.clip)}

    def preprocessing(self) -> Mapping[str, Any]:
        """The mean and the deviation that images are normalised with, in 0 to 1."""
        return {"mean": list(self.clip.visual.image_mean), "std": list(self.clip.visual.image_std)}

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
    def n_blocks(self) -> int:
        """How many vision blocks there are; a hierarchical tower's stages count as blocks."""
        return len(self._tower.blocks)

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """The model's own tokenizer: texts -> (T, context) int64.

        Raises:
            WeightsError: it must come from the hub and cannot.
        """
        return self._make_tokenizer()

    def add_branch(self, key: str, first_block: int, run: Run, known: Known | None = None) -> None:
        self._branches.add(key, first_block, run, known)
        self.dims = {**self.dims, key: self.dims["view"]}
        self.provides |= {key}

    def add_preprocessing(self, run: Callable[[Tensor], Tensor]) -> None:
        self._preprocessing.append(run)

    def attention_sites(self) -> list[AttentionSite]:
        """The query, key and value weights of the vision blocks, in order.

        Raises:
            ConfigError: the blocks hold no attention.
            PluginError: attention of an unknown class.
        """
        return attention_sites(self._tower.blocks, self.name)

    def set_trainable(self, mode: str) -> None:
        kind, _, count = mode.partition(":")
        if kind not in ("none", "all", "last") or (kind == "last") != count.isdigit():
            raise ConfigError(f"{self.name}: train must be none, all or last:N, not {mode!r}")
        parts: list[nn.Module | nn.Parameter] = {"none": [], "all": [self.clip]}.get(kind) or []
        if kind == "last":
            parts = self._tower.last_blocks(int(count))
        chosen: set[int] = set()
        for part in parts:
            chosen |= {id(part)} if isinstance(part, nn.Parameter) else {id(p) for p in part.parameters()}
        # Not an adapter's factors, which may stand among the model's parameters by now.
        for parameter, can_train in self._can_train.items():
            parameter.requires_grad_(can_train and id(parameter) in chosen)
        self._active = [part for part in parts if isinstance(part, nn.Module)]
        self.train(self.training)

    def train(self, mode: bool = True) -> OpenClip:
        """Training mode for what trains only: a frozen part draws no dropout and updates no running statistics."""
        super().train(mode)
        if mode:
            self.clip.eval()
            for part in self._active:
                part.train()
        return self

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        """The features `keys` of a batch; `view` and `dense` share one pass.

        Raises:
            ConfigError: a feature that the model has not, or images of another size than it takes.
            DataError: no images in the batch.
        """
        unknown = keys - self.provides
        if unknown:
            has = ", ".join(sorted(self.provides))
            raise ConfigError(f"{self.name} has no feature {', '.join(sorted(unknown))} (it has: {has})")
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

    def _pixels(self, batch: ViewBatch, keys: frozenset[str]) -> Tensor:
        if batch.images is None:
            made = ", ".join(sorted(keys & ({"view", "dense"} | self._branches.keys)))
            raise DataError(f"{self.name} makes {made} from images; there are none")
        pixels = self.normalise(batch.images)
        for run in self._preprocessing:
            pixels = run(pixels)
        return pixels

    def _encode_images(self, pixels: Tensor, keys: frozenset[str]) -> dict[str, Tensor]:
        if "dense" not in keys:
            # CoCa normalises unless it is told not to.
            return {"view": self.clip.encode_image(pixels, normalize=False)}
        view, dense = self._tower.encode(pixels, view="view" in keys)
        return {"dense": dense} if view is None else {"view": view, "dense": dense}

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> the same in the model's type, with its own mean and deviation, on its device.

        Raises:
            ConfigError: not RGB uint8, or another size than the model takes.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"images must be (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
        if tuple(images.shape[2:]) != (self.image_size, self.image_size):
            size = "x".join(str(side) for side in images.shape[2:])
            raise ConfigError(
                f"images are {size} but {self.name} takes {self.image_size}x{self.image_size}; set image_size"
            )
        # Sources give their pixels as they were decoded, channels last; the type's copy puts them in order as well.
        pixels = images.to(self.device, non_blocking=True)
        pixels = pixels.to(self._mean.dtype, memory_format=torch.contiguous_format)
        return (pixels - self._mean) / self._std

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
