"""A model of stored vectors for images: the encoder that made the vectors, with what was trained on them behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mvcore.dense_grid import DenseGrid
from mvcore.errors import DataError, MvcoreError, WeightsError
from mvcore.model import Images, Model, Objects, Pipeline
from mvcore.model_card import TRAINING_DATA, read_training_data
from mvcore.model_key import model_key
from mvcore.types import Features, ViewBatch

_COMPARED = ("architecture_sha256", "weights_sha256", "image_size", "mean", "std")


class StoredModel(Model):
    """What a run on stored vectors gives: vectors through its heads, and images through their encoder before them.

    The encoder is loaded when the first image comes, or the first text that no vector is stored for.

    Args:
        pipeline: heads on `core.embeddings`.
        run: the run's folder, which says what made the vectors.
    """

    def __init__(self, pipeline: Pipeline, run: Path, name: str) -> None:
        super().__init__(pipeline, name)
        self._run = run
        self._whole: Model | None = None
        backbone: Any = pipeline.backbone
        backbone.other_texts = lambda texts: self.from_images().encode_text(texts)

    def from_images(self) -> Model:
        """The same heads on the encoder that made the vectors.

        Raises:
            WeightsError: it is not known, cannot be had, or is another now.
        """
        if self._whole is None:
            self._whole = behind(recorded_encoder(self._run, self._tag), self.pipeline, self._run)
            self._whole.name = self.name
        self._whole.views_per_batch = self.views_per_batch
        return self._whole.to(self.device)

    def features(self, batch: ViewBatch, keys: frozenset[str]) -> Features:
        """Features of a batch of stored vectors or, where it has none of them, of images."""
        if batch.images is not None and f"{self._tag}/image" not in batch.embeddings:
            return self.from_images().features(batch, keys)
        return super().features(batch, keys)

    def encode_images(self, images: Images) -> Tensor:
        return self.from_images().encode_images(images)

    def encode_views(self, objects: Objects) -> Tensor:
        return self.from_images().encode_views(objects)

    def dense(self, images: Images, *, per_pixel: bool = False) -> Tensor:
        return self.from_images().dense(images, per_pixel=per_pixel)

    def keypoints(self, images: Images, points: Any) -> Tensor:
        return self.from_images().keypoints(images, points)

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        return self.from_images().dense_grid(width, height)

    def prepare(self, images: Sequence[Any]) -> Tensor:
        return self.from_images().prepare(images)

    @property
    def _tag(self) -> str:
        return tag_of(self.pipeline)


def tag_of(heads: Pipeline) -> str:
    """What the vectors are called."""
    backbone: Any = heads.backbone
    return backbone.tag


def recorded_encoder(run: Path, tag: str) -> Model:
    """The encoder that a run's record names as the maker of its vectors.

    Raises:
        WeightsError: none is named, or it cannot be had.
    """
    from mvcore.loading import load, load_encoder

    made_with = vectors_key(run, tag).get("model")
    name_it = f"name it: mvcore.load({str(run)!r}, encoder=...)"
    named = made_with if isinstance(made_with, Mapping) else {}
    part_id, source = named.get("id"), named.get("source")
    if source is None and (not isinstance(part_id, str) or part_id == "import" or named.get("adapters")):
        raise WeightsError(f"{run}: it was trained on stored vectors, and what made them is not recorded; {name_it}")
    try:
        if source is not None:
            return load(str(source))
        return load_encoder(str(part_id), {k: v for k, v in named.items() if k not in ("id", "embeddings", "train")})
    except MvcoreError as error:
        raise WeightsError(f"{run}: the encoder of its vectors cannot be had: {error}; {name_it}") from error


def behind(encoder: Model, heads: Pipeline, run: Path) -> Model:
    """The heads of a run on the encoder that made its vectors.

    Raises:
        WeightsError: the run's record says that another model made them, or it gives vectors of another width.
    """
    recorded, found = vectors_key(run, tag_of(heads)), json.loads(json.dumps(model_key(encoder), default=str))
    for field in _COMPARED:
        if recorded.get(field) is not None and recorded[field] != found.get(field):
            there, here = (_short(key.get(field)) for key in (recorded, found))
            raise WeightsError(
                f"{run}: {encoder.name} is not the model that made its vectors: {field} is {there} there and {here} "
                "here"
            )
    size = encoder.backbone.image_size or 64
    width = encoder.encode_images(np.zeros((size, size, 3), np.uint8)).shape[1]
    if width != heads.backbone.dims["view"]:
        wanted = heads.backbone.dims["view"]
        raise WeightsError(f"{run}: was trained on vectors {wanted} wide, and those of {encoder.name} are {width} wide")
    whole = Pipeline(encoder.backbone, [*encoder.pipeline.links, *heads.links])
    return Model(whole.eval(), name=str(run)).to(encoder.device)


def vectors_key(run: Path, tag: str) -> dict[str, Any]:
    """What the vectors that a run was trained on were made with, as its sources said; empty where they did not.

    Raises:
        DataError: the record is damaged.
    """
    for entry in read_training_data(run).values():
        stored = entry.get("embeddings", {})
        if not isinstance(stored, dict) or not isinstance(stored.get(tag, {}), dict):
            raise DataError(f"{run / TRAINING_DATA}: damaged: embeddings must be a mapping for each tag")
        if tag in stored:
            return stored[tag]
    return {}


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)
