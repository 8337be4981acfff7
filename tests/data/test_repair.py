"""`mvcore data check --repair` copies what is sound into a new store and names what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mvcore.api import DataError
from mvcore.cli.main import run
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.check import check_store
from mvcore_data.repair import repair_store
from mvcore_data.split import split_store

VIEWS = {"a": 2, "b": 3, "c": 1, "d": 2}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Four objects, a shard each, with everything that a store may hold."""
    rng = np.random.default_rng(0)
    camera = (np.array([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]), np.eye(4))
    with ViewStoreWriter(tmp_path / "store", shard_bytes=1) as writer:
        for name, n in VIEWS.items():
            writer.add_object(
                name,
                rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
                captions=[f"all of {name}", "more"],
                view_captions=[[f"{name} {v}"] for v in range(n)],
                category="cup",
                licence="MIT",
                source="here",
                creator="somebody",
                cameras=[camera] * (n - 1) + [None],
                depth=[rng.uniform(1, 2, (8, 8)), *[None] * (n - 1)],
                masks=[rng.random((8, 8)) > 0.5] * n,
            )
    split_store(tmp_path / "store", {"train": 0.5, "test": 0.5})
    return tmp_path / "store"


def damage_view(store: Path, object_id: str, view: int, what: str = "views") -> None:
    """Flips a bit of a stored image, depth map or mask."""
    with ViewStore(store) as opened:
        shard = opened._shards[opened.object_ids.index(object_id)]
        blob = getattr(shard, what)
        position = blob.start + int(blob.offset[view]) + 30
        file = shard.path
    data = bytearray(file.read_bytes())
    data[position] ^= 4
    file.write_bytes(data)


def damage_shard(store: Path, number: int) -> None:
    """Cuts a shard's end off."""
    file = store / f"shard-{number:05d}.h5"
    file.write_bytes(file.read_bytes()[:-100])


def everything(store: ViewStore, i: int, views: list[int] | None = None) -> list[object]:
    """All that a store gives of an object, byte for byte."""
    found: list[object] = [store.captions(i), store.category(i), store.licence(i), store.source(i), store.creator(i)]
    for v in store.views_of(i) if views is None else [store.views_of(i)[k] for k in views]:
        camera = store.camera(v)
        found += [store.encoded(v), store.size(v), store.codec(v), store.view_captions(v)]
        found += [store.encoded_depth(v), store.encoded_mask(v), camera and [m.tobytes() for m in camera]]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.process
@pytest.mark.parametrize("untrusted", [False, True])
def test_a_damaged_object_is_dropped_and_the_rest_is_kept_as_it_was(store: Path, untrusted: bool) -> None:
    out = store.with_name("repaired")
    sound = ViewStore(shutil.copytree(store, store.with_name("sound")))
    damage_view(store, "b", 1)
    damage_shard(store, 3)
    before = files(store)
    report = repair_store(store, out, untrusted=untrusted)
    assert files(store) == before
    assert (report.objects, report.views) == (2, 3)
    assert (report.dropped, report.thinned, report.dropped_views) == (["b"], [], 3)
    assert (report.lost_objects, report.lost_views) == (1, 2)
    assert ["shard-00003.h5" in report.problems[0], "view 1 of object 'b'" in report.problems[1]] == [True, True]
    assert check_store(out).ok
    with ViewStore(out) as repaired:
        assert repaired.object_ids == ["a", "c"]
        assert [everything(repaired, i) for i in (0, 1)] == [everything(sound, i) for i in (0, 2)]
        expected = {name: [id for id in ids if id in "ac"] for name, ids in sound.splits().items()}
        assert repaired.splits() == expected
        assert sum(map(len, expected.values())) == 2


@pytest.mark.parametrize("what", ["views", "masks", "depth"])
def test_good_views_of_a_damaged_object_are_kept_where_asked(store: Path, what: str) -> None:
    out = store.with_name("repaired")
    sound = ViewStore(shutil.copytree(store, store.with_name("sound")))
    damage_view(store, "b", 0, what)
    damage_view(store, "c", 0)
    report = repair_store(store, out, keep_good_views=True)
    assert (report.dropped, report.thinned, report.dropped_views) == (["c"], ["b"], 2)
    with ViewStore(out) as repaired:
        assert repaired.object_ids == ["a", "b", "d"]
        assert everything(repaired, 1) == everything(sound, 1, [1, 2])
        assert everything(repaired, 2) == everything(sound, 3)


def test_a_sound_store_is_not_copied(store: Path) -> None:
    report = repair_store(store, store.with_name("repaired"))
    assert not report.problems
    assert not store.with_name("repaired").exists()


def test_what_cannot_be_repaired_is_said_and_nothing_is_made(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "repaired"
    with pytest.raises(DataError, match="holds a store already"):
        repair_store(store, store)
    for number in range(4):
        damage_shard(store, number)
    with pytest.raises(DataError, match=f"nothing in it is sound, so {out} was not made"):
        repair_store(store, out)
    assert not out.exists()
    (store / "index.json").unlink()
    with pytest.raises(DataError, match="not a store"):
        repair_store(store, out)


def test_check_names_every_shard_that_cannot_be_opened_and_reads_the_others(store: Path) -> None:
    damage_shard(store, 0)
    damage_shard(store, 2)
    report = check_store(store)
    assert (report.objects, report.views) == (2, 5)
    assert [name for name in ("shard-00000", "shard-00002") if any(name in line for line in report.problems)] == [
        "shard-00000",
        "shard-00002",
    ]


def test_the_command_says_what_was_lost(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = store.with_name("repaired")
    damage_view(store, "b", 1)
    damage_shard(store, 3)
    assert run(["data", "check", str(store)]) == 2
    assert run(["data", "check", str(store), "--keep-good-views"]) == 2
    capsys.readouterr()
    assert run(["data", "check", str(store), "--repair", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 2 objects, 3 views; 3 views dropped\n"
    assert "dropped: object 'b'" in said.err
    assert "lost with their shards: 1 objects, 2 views" in said.err
    assert run(["data", "check", str(out)]) == 0
    assert run(["data", "check", str(out), "--repair", str(out.with_name("again"))]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert json.loads((out / "index.json").read_text())["splits"].keys() == {"train", "test"}
