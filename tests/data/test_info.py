"""What `info` says of a store, and the contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.cli import app
from mvcore_data.info import contact_sheet, store_info
from mvcore_data.split import split_store
from PIL import Image
from typer.testing import CliRunner


@pytest.fixture
def store(tmp_path: Path) -> ViewStore:
    """Three objects with 1, 2 and 3 views of one colour each."""
    path = tmp_path / "store"
    with ViewStoreWriter(path, codec="png") as writer:
        for i in range(3):
            shape = (8, 10 + i)
            writer.add_object(
                f"object-{i}",
                [np.full((*shape, 3), 40 * (i + 1) + 5 * k, np.uint8) for k in range(i + 1)],
                captions=["a", "b"] if i else [],
                view_captions=[["c"]] * (i + 1) if i == 2 else None,
                category="cup" if i else None,
                cameras=[(np.eye(3), np.eye(4))] * (i + 1) if i == 2 else None,
                depth=[np.ones(shape)] * (i + 1) if i else None,
                masks=[np.ones(shape, bool)] + [None] * i,
                licence=("by", "CC-BY-4.0", None)[i],
                source="attic" if i else "cellar",
                creator="Ada" if i == 2 else None,
            )
    split_store(path, {"train": ["object-0", "object-2"], "test": ["object-1"]})
    return ViewStore(path)


def test_figures(store: ViewStore) -> None:
    info = store_info(store)
    assert (info.objects, info.views, info.views_per_object) == (3, 6, (1, 2.0, 3))
    assert info.bytes == sum(len(store.encoded(v)) for v in range(6))
    assert info.sizes == {"12x8": 3, "11x8": 2, "10x8": 1}
    assert info.codecs == {"png": 6}
    assert (info.cameras, info.depth, info.masks) == (3, 5, 3)
    assert (info.captioned_objects, info.captioned_views, info.captions) == (2, 3, 7)
    assert info.categories == {"cup": 2, "": 1}
    assert info.licences == {"CC-BY-4.0": 2, "": 1}
    assert info.sources == {"attic": 2, "cellar": 1}
    assert info.creators == {"": 2, "Ada": 1}
    assert info.splits == {"train": 2, "test": 1}


def test_what_the_command_says_of_licences_sources_and_creators(store: ViewStore) -> None:
    said = CliRunner().invoke(app, ["info", str(store.path)]).output.splitlines()
    assert "licences    CC-BY-4.0 2, none 1" in said
    assert "sources     2: attic 2, cellar 1" in said
    assert "creators    1: none 2, Ada 1" in said


def test_contact_sheet(store: ViewStore, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "sheet.png"
    contact_sheet(store, out, objects=2, views=2)
    sheet = np.asarray(Image.open(out))
    assert sheet.dtype == np.uint8
    # The first and the last object, and of the last its first and last view.
    shown = {int(value) for value in np.unique(sheet[..., 0]) if (sheet[..., 0] == value).sum() >= 80}
    assert {40, 120, 130} <= shown
    assert 80 not in shown
    assert [p.name for p in out.parent.iterdir()] == ["sheet.png"]


def test_a_sheet_that_cannot_be_written(store: ViewStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        contact_sheet(store, tmp_path / "file" / "sheet.png")
