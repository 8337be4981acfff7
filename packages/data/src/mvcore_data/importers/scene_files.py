"""Files that a source names or holds: kept inside its folder, bounded, their headers read before their pixels."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray
from PIL import Image

from mvcore_data import decode
from mvcore_data.image_structure import header
from mvcore_data.importers.base import Skipped, SourceView
from mvcore_data.importers.cameras import Size
from mvcore_data.source_images import SUFFIXES, UnusableError, read_bytes

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112
_PARTS = re.compile(r"\d+|\D+")
_MAX_JSON_BYTES = 1 << 30
_MAX_NPY_BYTES = 1 << 28
_HEADER_BYTES = 1 << 16
_DETECTION_FOLDERS = 16
_DEEP_KINDS = ("I;16", "I;16B", "I")

LEAVES = "a path or link that leaves the folder"
DAMAGED = "its image header is damaged"


class Header(NamedTuple):
    """What an image file's header says: (height, width), Pillow's mode, and whether EXIF calls it rotated."""

    size: Size
    mode: str
    rotated: bool


class LazyViews(Sequence[SourceView]):
    """Views that are made when the first of them is asked for.

    Args:
        make: gives them; called once.
    """

    def __init__(self, make: Callable[[], list[SourceView]]) -> None:
        self._make = make
        self._made: list[SourceView] | None = None

    def _views(self) -> list[SourceView]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __len__(self) -> int:
        return len(self._views())

    @overload
    def __getitem__(self, index: int) -> SourceView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SourceView]: ...
    def __getitem__(self, index: int | slice) -> SourceView | Sequence[SourceView]:
        return self._views()[index]


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts 2 before 10."""
    parts = _PARTS.findall(name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


class Root:
    """The folder of a source, which no name may leave.

    Args:
        path: of the folder; it may itself be a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        # A folder is resolved by a system call for each part of its path, and images mostly share one.
        self._folder = lru_cache(maxsize=256)(Path.resolve)

    def inside(self, base: Path, name: str) -> Path:
        """The file that a source names, resolved.

        Args:
            base: the folder that the name is relative to.
            name: its name; an absolute one may point into the folder.

        Raises:
            UnusableError: it leads out of the folder, by itself or through a link.
        """
        try:
            path = base / name
            found = self._folder(path.parent) / path.name
            if path.name == ".." or found.is_symlink():
                found = found.resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or a NUL
            raise UnusableError(LEAVES) from None
        if not found.is_relative_to(self.path):
            raise UnusableError(LEAVES)
        return found


def subfolders(folder: Path, root: Path, skipped: Skipped) -> Iterator[Path]:
    """The folders in a folder in natural order; hidden ones and links out of `root` left out."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        skipped.add(f"a folder that cannot be read ({error.strerror})", folder)
        return
    for path in entries:
        if path.name.startswith(".") or not path.is_dir():
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            skipped.add(LEAVES, path)
            continue
        yield path


def scene_folders(root: Path, skipped: Skipped, levels: int, is_scene: Callable[[Path], bool]) -> Iterator[Path]:
    """`root` itself, or the folders at most `levels` below it, that are scenes; none inside of another one."""
    if is_scene(root):
        yield root
        return
    if levels == 0:
        return
    for folder in subfolders(root, root.resolve(), skipped):
        yield from scene_folders(folder, skipped, levels - 1, is_scene)


def first_scene(root: Path, levels: int, is_scene: Callable[[Path], bool]) -> Path | None:
    """A scene among the first folders of each level, for detection, which must not walk a whole disk."""
    if not root.is_dir():
        return None
    if is_scene(root):
        return root
    folders = islice(subfolders(root, root.resolve(), Skipped()), _DETECTION_FOLDERS) if levels else ()
    return next((found for folder in folders if (found := first_scene(folder, levels - 1, is_scene))), None)


def image_names(folder: Path, root: Path, skipped: Skipped) -> list[str]:
    """Names of the image files in a folder, in natural order; links out of `root` and other files left out."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: natural(entry.name))
    except OSError as error:
        skipped.add(f"a folder that cannot be read ({error.strerror})", folder)
        return names
    for entry in found:
        suffix = Path(entry.name).suffix
        if entry.is_dir():
            continue
        if suffix.lower() not in SUFFIXES:
            skipped.add(f"not a JPEG, PNG or WebP file ({suffix or 'no suffix'})", entry.path)
        elif entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
            skipped.add(LEAVES, entry.path)
        else:
            names.append(entry.name)
    return names


def peek(path: Path) -> Header:
    """Reads the header of a JPEG, PNG or WebP file.

    Raises:
        UnusableError: missing, damaged or beyond the limits.
    """
    try:
        with path.open("rb") as file:
            plain = header(file.read(_HEADER_BYTES))
        if plain is not None:  # ten times as fast as Pillow
            decode.check_size(plain.height, plain.width, "image")
            return Header((plain.height, plain.width), "RGBA" if plain.alpha else "RGB", plain.rotated)
        with Image.open(path, formats=_FORMATS) as image:
            decode.check_size(image.height, image.width, "image")
            try:
                rotated = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            except Exception:  # a broken EXIF block does not make the pixels wrong
                rotated = False
            return Header((image.height, image.width), image.mode, rotated)
    except FileNotFoundError:
        raise UnusableError("no such file") from None
    except Exception:  # Pillow's parsers raise many kinds on damaged bytes
        raise UnusableError(DAMAGED) from None


def raw_pixels(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3 or 4) pixels as they lie in the file, an EXIF rotation ignored: what its camera was fitted to.

    Raises:
        UnusableError: it cannot be decoded.
    """
    data = read_bytes(path)
    try:
        info = decode.inspect(data, "image")
        if not info.alpha:
            return decode.decode_image(data, info.codec, (info.height, info.width), "image")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return np.array(image.convert("RGBA"))
    except DataError as error:
        raise UnusableError(str(error).removeprefix("image: ")) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UnusableError((str(error).splitlines() or ["cannot be read"])[0]) from None


def deep_values(path: Path) -> NDArray[np.uint16]:
    """(H, W) values of a 16-bit grey PNG.

    Raises:
        UnusableError: missing, damaged, or none.
    """
    header = peek(path)
    if header.mode not in _DEEP_KINDS:
        raise UnusableError("not a 16-bit grey PNG")
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=("PNG",)) as image:
            return np.array(image).astype(np.uint16)
    except (OSError, ValueError, SyntaxError):
        raise UnusableError("a depth file that cannot be decoded") from None


def mask_values(path: Path) -> NDArray[np.uint8]:
    """(H, W) grey values of an image file that is a mask.

    Raises:
        UnusableError: missing or damaged.
    """
    peek(path)
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=_FORMATS) as image:
            return np.array(image.convert("L"))
    except (OSError, ValueError, SyntaxError):
        raise UnusableError("a mask file that cannot be decoded") from None


def npy_size(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that a .npy file announces, checked against its length.

    Raises:
        UnusableError: missing, damaged, of objects, or shorter or longer than its array.
    """
    from numpy.lib import format as npy

    try:
        if path.stat().st_size > _MAX_NPY_BYTES:
            raise UnusableError(f"larger than {_MAX_NPY_BYTES} bytes")
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            begin = file.tell()
    except FileNotFoundError:
        raise UnusableError("no such file") from None
    except UnusableError:
        raise
    except Exception:  # the header is parsed as Python's literals, which fail in many ways
        raise UnusableError("no .npy file") from None
    if dtype.hasobject or dtype.kind not in "fiu" or min(shape, default=1) < 0:
        raise UnusableError("no .npy file of numbers")
    if begin + dtype.itemsize * int(np.prod(shape, dtype=object)) != path.stat().st_size:
        raise UnusableError("a .npy file of another length than its array")
    return shape, dtype


def read_npy(path: Path) -> NDArray[np.float64]:
    """The array of a .npy file; pickles are refused.

    Raises:
        UnusableError: as `npy_size`.
    """
    npy_size(path)
    try:
        return np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError):
        raise UnusableError("no .npy file") from None


def read_json(path: Path, limit: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        DataError: missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path}: larger than {limit} bytes")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path}: cannot be read as JSON") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds no JSON object")
    return value
