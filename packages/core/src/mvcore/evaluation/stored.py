"""Views of an untouched model read from the vectors that stand beside a store, in the place of encoding them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mvcore.evaluation.results import Table
from mvcore.model import Model
from mvcore.model_key import model_key
from mvcore.parts import IndexedDataset, StoredEmbeddings


@dataclass(frozen=True)
class StoredViews:
    """The sources that have stored vectors of a model.

    Args:
        tag: what the vectors are called.
        sources: by the source's name the same objects and views, with vectors in the place of images.
    """

    tag: str
    sources: Mapping[str, IndexedDataset]

    def table(self) -> Table:
        """Which sources were not encoded, for the report."""
        rows = [(name, self.tag, "float16") for name in self.sources]
        return Table("Views read from stored embeddings", ("source", "tag", "type"), rows)


def stored_views(model: Model, sources: Mapping[str, IndexedDataset], tag: str) -> StoredViews | None:
    """The sources with vectors of a model under a tag; None where no source has any.

    Raises:
        DataError: they were made with another model or other transforms; the text says what differs.
    """
    having = {
        name: source
        for name, source in sources.items()
        if isinstance(source, StoredEmbeddings) and "image" in source.stored_embeddings(tag)
    }
    if not having:
        return None
    key = model_key(model)
    return StoredViews(tag, {name: source.stored_views(tag, key) for name, source in having.items()})
