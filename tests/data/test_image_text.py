"""`data.image_text`: captioned images from a JSON list, the authors' metadata format among them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.errors import DataError
from mvcore.parts import IndexedDataset
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification
from mvcore_data.image_text import ImageText
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError


def save(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (20, 30)) -> NDArray[np.uint8]:
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if channels > 1 else pixels[..., 0]).save(path)
    return pixels


def write(folder: Path, entries: Any) -> str:
    path = folder / "list.json"
    path.write_text(json.dumps(entries))
    return str(path)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    for number in range(7):
        save(tmp_path / "images" / f"{number}.png", number)
    return write(tmp_path, [{"path": f"images/{n}.png", "caption": f"picture {n}"} for n in range(7)])


@pytest.fixture
def released(tmp_path: Path) -> str:
    """The authors' format, with object ids that leave gaps and are not in order."""
    entries = []
    for position, (obj, view) in enumerate([(3177, 26), (12, 0), (3177, 4), (12, 7), (5, 1)]):
        save(tmp_path / "views" / f"{obj}" / f"{view:03d}.png", position)
        entries.append(
            {
                "path": f"./views/{obj}/{view:03d}.png",
                "caption": f"object {obj} seen from {view}",
                "obj_id": obj,
                "img_id": obj * 100 + view,
            }
        )
    return write(tmp_path, entries)


def test_entries_are_objects_of_their_own(plain: str) -> None:
    dataset = ImageText(path=plain, image_size=20)
    assert isinstance(dataset, IndexedDataset)
    assert len(dataset) == 7
    assert dataset.object_name(3) == "images/3.png"
    batch = dataset.load(3, dataset.views_of(3), None)
    assert batch.captions == ("picture 3",)
    assert batch.object_ids.tolist() == batch.view_ids.tolist() == [-1]
    assert batch.positives().tolist() == [[True]]
    assert batch.images is not None
    image = np.asarray(Image.open(Path(plain).parent / "images/3.png"))
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), image[:, 5:25])


def test_the_released_format_groups_objects_and_keeps_positions(released: str) -> None:
    dataset = ImageText(path=released, image_size=16)
    assert [list(dataset.views_of(i)) for i in range(len(dataset))] == [[0, 2], [1, 3], [4]]
    assert [dataset.object_name(i) for i in range(3)] == ["3177", "12", "5"]
    batch = dataset.load(0, [2, 0], None)
    assert batch.object_ids.tolist() == [2], "ids number the distinct obj_ids in ascending order, without gaps"
    assert batch.view_ids.tolist() == [2, 0]
    assert batch.captions == ("object 3177 seen from 4", "object 3177 seen from 26")
    assert batch.positives().tolist() == [[True, False], [False, True]], "each caption is that of its own view"
    assert (dataset.n_store_objects, dataset.n_store_views) == (3, 5)
    ids = [int(dataset.load(i, [v], None).view_ids[0]) for i in range(3) for v in dataset.views_of(i)]
    assert sorted(ids) == list(range(5)), "positions and view ids are one to one"


def test_each_step_has_both_batch_sizes_and_the_short_source_cycles(plain: str, released: str) -> None:
    """Item D2 of the reading: B_mv and B_in samples in every step, the shorter source starting anew by itself."""
    mv = ImageText(path=released, image_size=16, augment=[{"rotate": 20}])
    sources = [
        SourceSpecification(name="mv", dataset=mv, sampling="views", batch_size=2),
        SourceSpecification(name="in", dataset=ImageText(path=plain, image_size=16), batch_size=3, index=1),
    ]
    first = list(StepLoader(sources, seed=0, steps=9))
    assert [(step["mv"].n_views, step["in"].n_views) for step in first] == [(2, 3)] * 9
    for one, other in zip(first, StepLoader(sources, seed=0, steps=9), strict=True):
        assert one["mv"].images is not None
        assert other["mv"].images is not None
        assert torch.equal(one["mv"].images, other["mv"].images)


def test_expected_outliers_of_a_batch_are_those_of_uniform_views() -> None:
    """Item D2: E[outliers in a batch] = B * sum_i min(K, V_i) / N, for views drawn uniformly."""
    from mvcore.training.sampling import SourceSampler

    counts, k, batch = np.array([2, 9, 4, 7, 30]), 5, 13

    class Ids:
        image_size, store_key, provides = 1, "ids", frozenset[str]()
        n_store_objects, n_store_views = len(counts), int(counts.sum())

        def __len__(self) -> int:
            return len(counts)

        def views_of(self, i: int) -> range:
            start = int(counts[:i].sum())
            return range(start, start + int(counts[i]))

        def load(self, i: int, views: Any, rng: Any) -> Any:
            raise AssertionError("only ids are drawn here")

        def object_name(self, i: int) -> str:
            return str(i)

        def category(self, i: int) -> str | None:
            return None

    outlier = np.concatenate([np.arange(count) < min(k, count) for count in counts])
    sampler = SourceSampler(SourceSpecification(name="a", dataset=Ids(), sampling="views", batch_size=batch), seed=0)
    seen = np.mean([outlier[sampler.draw(step).views].sum() for step in range(4000)])
    assert seen == pytest.approx(batch * np.minimum(counts, k).sum() / counts.sum(), rel=0.02)


def test_grey_and_opaque_images_are_read_and_transparent_ones_need_a_background(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", 0, "L", (8, 8))
    clear = save(tmp_path / "clear.png", 1, "RGBA", (8, 8))
    opaque = clear.copy()
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    path = write(tmp_path, [{"path": f"{name}.png", "caption": name} for name in ("grey", "opaque", "clear")])
    dataset = ImageText(path=path, image_size=8)
    images = dataset.load_many([(0, [0]), (1, [1])], None).images
    assert images is not None
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), np.repeat(grey, 3, axis=2))
    assert np.array_equal(images[1].permute(1, 2, 0).numpy(), opaque[..., :3])
    with pytest.raises(DataError, match=r"entry 2: is transparent; .*background: \[R, G, B\]"):
        dataset.load(2, [2], None)
    mixed = ImageText(path=path, image_size=8, background=(255, 0, 128)).load(2, [2], None).images
    assert mixed is not None
    alpha = clear[..., 3:] / 255
    expected = clear[..., :3] * alpha + np.array([255, 0, 128]) * (1 - alpha)
    assert np.abs(mixed[0].permute(1, 2, 0).numpy() - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"path": "a.png"}, "holds no list"),
        ([], "the list is empty"),
        (["a.png"], "entry 0 is str, not an object"),
        ([{"path": "a.png"}], "entry 0 has no 'caption'"),
        ([{"caption": "a"}], "entry 0 has no 'path'"),
        ([{"path": "a", "caption": "b"}, {"path": 3, "caption": "b"}], "entry 1: path must be str, not 3"),
        ([{"path": "a", "caption": "b", "obj_id": "4"}], "entry 0: obj_id must be int, not '4'"),
        ([{"path": "a", "caption": "b", "obj_id": True}], "entry 0: obj_id must be int, not True"),
        ([{"path": "a", "caption": "b", "obj_id": -2}], "count from 0"),
        ([{"path": "a", "caption": "b", "img_id": 2}], "has an img_id but no obj_id"),
        ([{"path": "a", "caption": "b", "label": 2}], "entry 0 has the unknown key 'label'"),
        ([{"path": "", "caption": "b"}], "entry 0: '' is no path"),
        (
            [
                {"path": "a", "caption": "b", "obj_id": 0, "img_id": 7},
                {"path": "c", "caption": "d", "obj_id": 1, "img_id": 7},
            ],
            "entries 0 and 1 have the same img_id 7",
        ),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, entries: Any, text: str) -> None:
    with pytest.raises(DataError) as caught:
        ImageText(path=write(tmp_path, entries))
    assert text in str(caught.value)
    assert "list.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"path": ')
    with pytest.raises(DataError, match="not a JSON file"):
        ImageText(path=str(tmp_path / "broken.json"))
    with pytest.raises(DataError, match="is a folder"):
        ImageText(path=str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        ImageText(path=str(tmp_path / "none.json"))


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "short.png").write_bytes(buffer.getvalue()[:1500])
    (tmp_path / "folder.png").mkdir()
    names = ["missing", "text", "short", "folder"]
    dataset = ImageText(path=write(tmp_path, [{"path": f"{n}.png", "caption": n} for n in names]), image_size=8)
    for i, text in enumerate(["does not exist", "cannot be decoded", "cannot be decoded", "not a plain file"]):
        with pytest.raises(DataError, match=f"entry {i}: .*{text}"):
            dataset.load(i, dataset.views_of(i), None)


def test_options_of_views_are_not_those_of_lists(plain: str) -> None:
    with pytest.raises(ValidationError):
        ImageText(path=plain, split="train")
