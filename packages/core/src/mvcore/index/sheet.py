"""The hits of a search as a contact sheet: the query first, then the hits in their order."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mvcore.errors import DataError
from mvcore.evaluation.files import write_atomic
from mvcore.images import Pixels
from mvcore.index.catalogue import Hit
from mvcore.index.searching import Index
from mvcore.parts import IndexedDataset

CELL = 160
_GAP, _COLUMNS, _LINE, _LINES = 12, 5, 15, 3
_LABEL = _LINES * _LINE + 4
_INK, _GREY = "#202020", "#707070"


def draw_hits(index: Index, hits: Sequence[Hit], path: Path, *, query: str | Sequence[Pixels]) -> Path:
    """Draws a query and its hits as a PNG.

    An object of four views or more is shown by four of them, spread over all; another by its first.

    Args:
        index: what was searched; its data must still be there.
        hits: of one query.
        path: of the PNG, replaced whole.
        query: the text, or the (H, W, 3) uint8 images.

    Raises:
        DataError: the data is gone, no longer holds a hit, or the picture cannot be written.
    """
    pictures = _pictures(index, hits)
    columns = min(_COLUMNS, max(len(hits), 1 if isinstance(query, str) else len(query), 3))
    images = [] if isinstance(query, str) else [_fitted(pixels) for pixels in query]
    head = 2 * _GAP + 2 * _LINE + (-(-len(images) // columns) * (CELL + _GAP) if images else 0)
    rows = -(-len(hits) // columns)
    size = (columns * (CELL + _GAP) + _GAP, head + rows * (CELL + _LABEL + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    title = f'query: "{query}"' if isinstance(query, str) else f"query: {len(images)} view{'s'[: len(images) != 1]}"
    _write(draw, (_GAP, _GAP), [title], size[0] - 2 * _GAP, 14)
    for number, image in enumerate(images):
        sheet.paste(image, _place(number, columns, _GAP + 2 * _LINE, CELL + _GAP))
    draw.line((_GAP, head - _GAP, size[0] - _GAP, head - _GAP), fill="#c8c8c8")
    for number, (hit, picture) in enumerate(zip(hits, pictures, strict=True)):
        left, top = _place(number, columns, head, CELL + _LABEL + _GAP)
        sheet.paste(picture, (left, top))
        view = "" if hit.view is None else f", view {hit.view}"
        lines = [f"{hit.rank}.  {hit.score:.3f}", f"{hit.id}{view}", hit.captions[0] if hit.captions else hit.category]
        _write(draw, (left, top + CELL + 2), [line for line in lines if line], CELL, 11)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{path}: the sheet cannot be written ({error.strerror or error})") from None
    return path


def _place(number: int, columns: int, top: int, height: int) -> tuple[int, int]:
    return _GAP + number % columns * (CELL + _GAP), top + number // columns * height


def _pictures(index: Index, hits: Sequence[Hit]) -> list[Image.Image]:
    data = index.open_data(image_size=CELL, captions="none", images=True, embeddings=())
    numbers = {data.object_name(i): i for i in range(len(data))}
    return [_picture(data, numbers, hit) for hit in hits]


def _picture(data: IndexedDataset, numbers: dict[str, int], hit: Hit) -> Image.Image:
    number = numbers.get(hit.id)
    views = [] if number is None else list(data.views_of(number))
    if number is None or (hit.view or 0) >= len(views):
        raise DataError(f"the indexed store no longer holds {hit.id!r} as it was; build the index again")
    if hit.view is not None:
        chosen = [views[hit.view]]
    else:
        chosen = [views[i * len(views) // 4] for i in range(4)] if len(views) >= 4 else views[:1]
    images = data.load(number, chosen, None).images
    assert images is not None
    if len(chosen) == 4:
        half = torch.nn.functional.interpolate(images.float(), (CELL // 2, CELL // 2), mode="area").round().byte()
        pixels = torch.cat([torch.cat([half[0], half[1]], 2), torch.cat([half[2], half[3]], 2)], 1)
    else:
        pixels = images[0]
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _fitted(pixels: Pixels) -> Image.Image:
    """All of an image, as large as a cell allows, on white."""
    image = ImageOps.contain(Image.fromarray(pixels), (CELL, CELL))
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return cell


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], width: int, size: int) -> None:
    """Lines of text, each cut where it would be wider than `width`."""
    font = ImageFont.load_default(size)
    for number, line in enumerate(lines):
        text = " ".join(line.split())
        if draw.textlength(text, font) > width:
            while text and draw.textlength(f"{text}...", font) > width:
                text = text[:-1]
            text += "..."
        draw.text((at[0], at[1] + number * _LINE), text, _INK if number < 1 else _GREY, font)
