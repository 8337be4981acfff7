"""The losses as parts of a run: on packed views, as many of each object as there are, with the texts that there are."""

from __future__ import annotations

import torch
from mvcore.api import DataError, Features, ViewBatch
from torch import Tensor, nn

from mvcore_mvc_heads.blocks import Blocks, blocks_of
from mvcore_mvc_heads.losses import (
    CrossPairs,
    Normalise,
    attraction,
    encoding_repulsion,
    info_nce,
    reconstruction_error,
    repulsion,
    score_of,
)


class ObjectSimilarity(nn.Module):
    """`mvc_heads.object`: minus the mean cosine over all pairs among an object's views and its text.

    Args:
        text_weight: see `ObjectOptions`.
    """

    def __init__(self, text_weight: float | None = None) -> None:
        super().__init__()
        self.text_weight = text_weight

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`loss` and `positive`, that mean cosine.

        Raises:
            DataError: no object has a pair, or none a caption.
        """
        positive = attraction(_blocks("mvc_heads.object", features, batch, self.text_weight), self.text_weight)
        return {"loss": -positive, "positive": positive}


class Contrastive(nn.Module):
    """`mvc_heads.contrastive`: `(1 - w) D - w S` over all pairs of the batch.

    Args:
        text_weight, similarity_weight, normalise, cross_pairs: see `ContrastiveOptions`.
    """

    def __init__(
        self,
        text_weight: float | None = None,
        similarity_weight: float = 0.5,
        normalise: Normalise = "mean",
        cross_pairs: CrossPairs = "all",
    ) -> None:
        super().__init__()
        self.text_weight = text_weight
        self.similarity_weight = similarity_weight
        self.normalise: Normalise = normalise
        self.cross_pairs: CrossPairs = cross_pairs

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`loss`, and the mean cosines `positive` (S) and `negative` (D); D is 0 where there is one object.

        Raises:
            DataError: no object has a pair, or none a caption.
        """
        blocks = _blocks("mvc_heads.contrastive", features, batch, self.text_weight)
        positive = attraction(blocks, self.text_weight)
        negative = repulsion(
            blocks, normalise=self.normalise, cross_pairs=self.cross_pairs, text_weight=self.text_weight
        )
        loss = (1 - self.similarity_weight) * negative - self.similarity_weight * positive
        return {"loss": loss, "positive": positive, "negative": negative}


class Autoencoding(nn.Module):
    """`mvc_heads.autoencoder`: `a A + (1 - a) ((1 - w) D - w S)`, the cosines over the invariant encodings.

    Args:
        similarity_weight, reconstruction_weight, normalise: see `AutoencoderLossOptions`.
    """

    def __init__(
        self, similarity_weight: float = 0.5, reconstruction_weight: float = 0.5, normalise: Normalise = "mean"
    ) -> None:
        super().__init__()
        self.similarity_weight = similarity_weight
        self.reconstruction_weight = reconstruction_weight
        self.normalise: Normalise = normalise

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`loss`, the mean distance `reconstruction` (A), and the mean cosines `positive` (S) and `negative` (D).

        Raises:
            DataError: every object has one view.
        """
        _check_several_views("mvc_heads.autoencoder", batch)
        encoded = features["mvc_heads.invariant"]
        blocks = blocks_of(encoded, batch.object_of_view, batch.view_counts)
        positive, negative = attraction(blocks), encoding_repulsion(blocks, self.normalise)
        score = score_of(positive, negative, self.similarity_weight, several=batch.n_objects > 1)
        distance = reconstruction_error(features["mvc_heads.original"], features["mvc_heads.decoded"])
        share = self.reconstruction_weight
        return {
            "loss": share * distance + (1 - share) * score,
            "reconstruction": distance,
            "positive": positive,
            "negative": negative,
        }


class InfoNCE(nn.Module):
    """`mvc_heads.infonce`: each view and text against all others of the batch, those of its own object being right.

    Args:
        temperature, texts: see `InfoNCEOptions`.
    """

    def __init__(self, temperature: float = 0.07, texts: bool = True) -> None:
        super().__init__()
        self.temperature = temperature
        self.texts = texts

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """() loss; no gradient flows into texts.

        Raises:
            DataError: one object alone, no object with a pair, or none with a caption.
        """
        owner = "mvc_heads.infonce"
        if batch.n_objects < 2:
            raise DataError(f"{owner}: a batch of one object has nothing to tell it from; raise batch_size")
        vectors, objects = features.view, batch.object_of_view
        if self.texts:
            _check_captions(owner, batch, "set texts: false")
            _check_widths(owner, features)
            vectors = torch.cat([vectors, features.text.detach().to(vectors.dtype)])
            objects = torch.cat([objects, batch.caption_object])
        else:
            _check_several_views(owner, batch)
        return info_nce(vectors, objects, batch.n_objects, temperature=self.temperature)


def _blocks(owner: str, features: Features, batch: ViewBatch, text_weight: float | None) -> Blocks:
    """The batch's blocks, with texts unless they weigh nothing."""
    if text_weight == 0:
        _check_several_views(owner, batch)
        return blocks_of(features.view, batch.object_of_view, batch.view_counts)
    _check_captions(owner, batch, "set text_weight: 0")
    _check_widths(owner, features)
    if text_weight is not None and text_weight < 1:
        _check_several_views(owner, batch)
    return blocks_of(features.view, batch.object_of_view, batch.view_counts, features.text, batch.caption_object)


def _check_widths(owner: str, features: Features) -> None:
    views, texts = features.view.shape[1], features.text.shape[1]
    if views != texts:
        raise DataError(f"{owner}: views are {views} wide and texts {texts}, so they have no cosine; leave texts out")


def _check_captions(owner: str, batch: ViewBatch, otherwise: str) -> None:
    if not batch.captions:
        raise DataError(f"{owner}: a batch without any caption; give the source captions, or {otherwise}")


def _check_several_views(owner: str, batch: ViewBatch) -> None:
    if batch.max_views < 2:
        raise DataError(
            f"{owner}: every object of a batch has one view, which has no other to be compared with; set the "
            "source's views_per_object to 2 or more"
        )
