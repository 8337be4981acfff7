"""Which text stands for an object when views are compared with texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mvcore.errors import ConfigError
from mvcore.evaluation.embedder import Embedder
from mvcore.evaluation.options import TextOf
from mvcore.parts import IndexedDataset


@dataclass(frozen=True)
class ViewTexts:
    """Texts of a source and the pairs that they make with its views.

    Args:
        vectors: (T, D).
        view_index, text_index: (P,) rows of the source's views and of `vectors`.
        what: what the texts are, for a figure's definition.
    """

    vectors: Tensor
    view_index: Tensor
    text_index: Tensor
    what: str


def texts_of_views(
    embedder: Embedder, source: str, dataset: IndexedDataset, kind: TextOf, template: str, per_batch: int, owner: str
) -> ViewTexts | None:
    """The texts of a source's views, or None where there is none to be had and none is demanded.

    Raises:
        ConfigError: captions or categories are demanded of a source that lacks them, or of a model without text.
    """
    if kind == "none" or (kind == "auto" and not embedder.has_text):
        return None
    if not embedder.has_text:
        raise ConfigError(f"{owner}: this model encodes no text; set text: none")
    if kind in ("captions", "auto"):
        pairs = embedder.captions(source, dataset)
        if pairs.texts:
            vectors = embedder.encode_texts(pairs.texts, per_batch)
            return ViewTexts(vectors, pairs.view_index, pairs.text_index, "each caption")
        if kind == "captions":
            raise ConfigError(f"{owner}: source {source!r} has no caption; set text to category or none")
    categories = [dataset.category(i) for i in range(len(dataset))]
    if None in categories:
        if kind == "auto":
            return None
        name = dataset.object_name(categories.index(None))
        raise ConfigError(
            f"{owner}: object {name!r} of source {source!r} has no category; set text to captions or none"
        )
    words = sorted({category for category in categories if category is not None})
    prompts = [template.format(word.replace("_", " ")) for word in words]
    places = {word: i for i, word in enumerate(words)}
    owners = embedder.embed(source, dataset).object_of_view
    columns = torch.tensor([places[category] for category in categories if category is not None])[owners]
    what = f"the prompt {template!r} of the category"
    return ViewTexts(embedder.encode_texts(prompts, per_batch), torch.arange(len(owners)), columns, what)
