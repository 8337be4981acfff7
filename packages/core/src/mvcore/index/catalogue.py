"""What an index knows of its rows beside their vectors: objects with their words, and what was indexed with what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from mvcore.config_base import Options

FORMAT = "mvcore.index"
VERSION = 1

Of = Literal["object", "view"]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Rows = Annotated[int, Field(ge=1)]


class IndexedObject(Options):
    """One object.

    Args:
        id: its name in the store.
        category, licence: where they are known.
        captions: of the whole object.
        view_captions: of its views, by their place among the object's views; those without one are left out.
        views: how many views were indexed.
    """

    id: str
    category: str | None = None
    licence: str | None = None
    captions: tuple[str, ...] = ()
    view_captions: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    views: Annotated[int, Field(ge=1)]


class DataOrigin(Options):
    """The data that was indexed.

    Args:
        id: the dataset part that read it, as `data.views`; empty for a dataset that was made by hand.
        args: its options, with the store's absolute path.
        digest: of what the store held; None where the dataset gives none.
    """

    id: str = ""
    args: dict[str, Any] = Field(default_factory=dict)
    digest: str | None = None

    @property
    def path(self) -> str:
        """Where the store was."""
        return str(self.args.get("path", "the dataset"))


class Catalogue(Options):
    """`index.json`.

    Args:
        format, version: of the file.
        of: what a row is: an `object` or a `view`.
        dim: width of a vector.
        rows: how many there are.
        model: the model's name as it was given; a path is absolute.
        model_key: what the vectors depend on, images' size, mean and deviation among it; see `mvcore.api.model_key`.
        data: the data that was indexed.
        vectors: the file of vectors.
        sha256: digest of its content.
        objects: the objects, in order.
    """

    format: Literal["mvcore.index"] = FORMAT
    version: Literal[1] = VERSION
    of: Of
    dim: Rows
    rows: Rows
    model: str
    model_key: dict[str, Any]
    data: DataOrigin
    vectors: Annotated[str, StringConstraints(pattern=r"^vectors-[0-9a-f]{12}\.safetensors$")]
    sha256: Digest
    objects: Annotated[tuple[IndexedObject, ...], Field(min_length=1)]


class Hit(Options):
    """One row that was found.

    Args:
        rank: from 1.
        score: cosine with the query, -1 to 1.
        id: the object.
        view: the place of the view among the object's views, from 0; None for an object.
        category, licence: where they are known.
        captions: the view's own, else the object's, else those of its views.
        row: in the index.
    """

    rank: int
    score: float
    id: str
    view: int | None
    category: str | None
    licence: str | None
    captions: tuple[str, ...]
    row: int


def captions_of(entry: IndexedObject, view: int | None) -> tuple[str, ...]:
    """The captions that describe a row best."""
    own = entry.view_captions.get(str(view), ()) if view is not None else ()
    return (
        own or entry.captions or tuple(dict.fromkeys(text for texts in entry.view_captions.values() for text in texts))
    )


def plain(value: Any) -> Any:
    """Values as they come back from JSON."""
    return json.loads(json.dumps(value, default=lambda o: dict(o) if isinstance(o, Mapping) else str(o)))


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Sequence[str]:
    """What two model keys differ in, in words."""
    words = {
        "architecture_sha256": "architecture or adapters",
        "weights_sha256": "weights",
        "image_size": "image size",
        "mean": "image mean",
        "std": "image deviation",
    }
    return [text for key, text in words.items() if plain(mine.get(key)) != plain(theirs.get(key))]
