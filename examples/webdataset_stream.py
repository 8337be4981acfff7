"""Another format as a plugin of one file: tar shards of the WebDataset layout, read in order, without ids.

    mvcore data unpack store/ shards/ --format webdataset
    mvcore train run.yaml --plugin ./webdataset_stream.py

with, in run.yaml, `data: {tars: {id: webdataset_stream.tars, path: shards, batch_size: 16}}` and `run.epoch_steps`.

A sample is an object: the files whose names are equal up to the first dot, as `chair.000.jpg`, `chair.001.jpg`,
`chair.json`; the JSON may have `captions`. A stream gives objects as they come, with all of their views, so it cannot
be sampled by views or pairs, and no trainer that looks views up by id can work on it.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.api import DataError, DatasetSpec, Options, ViewBatch, hookimpl
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

MVCORE_API = 1
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
MAX_BYTES, MAX_PIXELS = 1 << 26, 1 << 26


@hookimpl
def mvcore_register_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="tars",
            summary="Objects from WebDataset shards, in their order",
            factory=Tars,
            config=TarsOptions,
        )
    ]


class TarsOptions(Options):
    """Options of `webdataset_stream.tars`."""

    path: str = Field(description="a folder of .tar files, which are read in the order of their names")
    image_size: int = Field(224, ge=8, description="side of the square images, cut out about the centre")


class Tars:
    """The dataset `webdataset_stream.tars`; see `TarsOptions`.

    Raises:
        DataError: no shard there.
    """

    provides = frozenset({"images", "captions"})

    def __init__(self, path: str, image_size: int) -> None:
        self.image_size = image_size
        self._shards = sorted(Path(path).expanduser().glob("*.tar"))
        if not self._shards:
            raise DataError(f"webdataset_stream.tars: no .tar file in {path}")
        self._position = 0

    def __iter__(self) -> Iterator[ViewBatch]:
        """One object at a time, from where the last iteration or `load_state_dict` left off, to the end."""
        samples = itertools.chain.from_iterable(map(_samples, self._shards))
        for key, files in itertools.islice(samples, self._position, None):
            self._position += 1
            yield self._object(key, files)
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """How many objects were given."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on behind as many objects; those before are passed over without being decoded."""
        self._position = state["position"]

    def _object(self, key: str, files: dict[str, bytes]) -> ViewBatch:
        # Masks and depth stand beside a view as 000.mask.png; a view's own name has one dot.
        views = [name for name in sorted(files) if name.endswith(IMAGES) and name.count(".") == 1]
        if not views:
            raise DataError(f"webdataset_stream.tars: {key} has no image")
        try:
            captions = json.loads(files.get("json", b"{}")).get("captions") or []
        except ValueError as error:
            raise DataError(f"webdataset_stream.tars: {key}.json is no JSON ({error})") from error
        return ViewBatch.make(
            [len(views)],
            images=torch.stack([self._pixels(f"{key}.{name}", files[name]) for name in views]),
            captions=captions,
            caption_object=torch.zeros(len(captions), dtype=torch.int64),
            caption_view=torch.full((len(captions),), -1),
        )

    def _pixels(self, name: str, data: bytes) -> Tensor:
        """(3, S, S) uint8."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"webdataset_stream.tars: {name} has more than {MAX_PIXELS} pixels")
                fitted = ImageOps.fit(image.convert("RGB"), (self.image_size, self.image_size))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"webdataset_stream.tars: {name} is no readable image ({error})") from error
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys and files of a shard's samples; a sample's files stand next to each other."""
    try:
        with tarfile.open(shard) as tar:
            named = (member for member in tar if member.isfile())
            for key, members in itertools.groupby(named, key=lambda member: member.name.partition(".")[0]):
                yield key, {member.name.partition(".")[2]: _bytes(tar, member) for member in members}
    except tarfile.TarError as error:
        raise DataError(f"webdataset_stream.tars: {shard} is no readable tar file ({error})") from error


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None or member.size > MAX_BYTES:
        raise DataError(f"webdataset_stream.tars: {member.name} is larger than {MAX_BYTES} bytes")
    return file.read()
