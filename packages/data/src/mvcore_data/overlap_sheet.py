"""The closest pairs of an overlap side by side as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvcore.api import DataError
from PIL import Image, ImageDraw, ImageFont

from mvcore_data.overlap import Pair, Place, Side
from mvcore_data.store import ViewStore

_CELL, _GAP, _LABEL, _ACROSS = 112, 4, 30, 3


def draw_pairs(first: Side, second: Side, pairs: Sequence[Pair], out: Path, most: int = 24) -> int:
    """Draws the closest pair of each pair of objects, A on the left and B on the right, as a PNG.

    Args:
        first, second: the sides.
        pairs: the most alike first.
        out: the PNG to write, replaced whole; not written where there is no pair.
        most: pairs at most.

    Returns:
        How many pairs were drawn.

    Raises:
        DataError: a view is damaged, or the picture cannot be written.
    """
    closest: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        closest.setdefault((pair.first.object, pair.second.object), pair)
    shown = list(closest.values())[:most]
    if not shown:
        return 0
    numbers = [{name: i for i, name in enumerate(side.store.object_ids)} for side in (first, second)]
    width, height = 2 * _CELL + 3 * _GAP, _LABEL + _CELL + _GAP
    across = min(_ACROSS, len(shown))
    sheet = Image.new("RGB", (across * width, -(-len(shown) // across) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for k, pair in enumerate(shown):
        left, top = k % across * width, k // across * height
        for column, (side, known, place) in enumerate(
            zip((first, second), numbers, (pair.first, pair.second), strict=True)
        ):
            x = left + _GAP + column * (_CELL + _GAP)
            draw.text((x, top), f"{'AB'[column]} {place.object[-16:]}\nview {place.view}", "black", font)
            picture = _picture(side.store, known[place.object], place)
            sheet.paste(picture, (x, top + _LABEL))
    temporary = out.with_name(f"{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(temporary, "PNG")
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    return len(shown)


def _picture(store: ViewStore, number: int, place: Place) -> Image.Image:
    picture = Image.fromarray(store.image(store.views_of(number)[place.view]))
    picture.thumbnail((_CELL, _CELL))
    return picture
