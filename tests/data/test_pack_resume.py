"""A pack that ends early goes on where it stood and gives the bytes of one that was never interrupted."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.api import DataError
from mvcore_data import ViewStore
from mvcore_data.check import check_store
from mvcore_data.packing import PackReport, pack
from PIL import Image

PACK = [sys.executable, "-m", "mvcore.cli.main", "data", "pack"]
SHARD = 40_000


def make_source(folder: Path, objects: int = 9, side: int = 48) -> Path:
    """Objects of noise, each with a damaged, a transparent and an unreadable file among its views."""
    rng = np.random.default_rng(0)
    for i in range(objects):
        path = folder / f"object-{i}"
        path.mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path / f"{k}.jpg", quality=90)
        Image.fromarray(rng.integers(0, 256, (side, side, 4), dtype=np.uint8)).save(path / "3.png")
        (path / "4.jpg").write_bytes((path / "0.jpg").read_bytes()[:-100])
        (path / f"{i}.txt").write_text("x")
    return folder


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def packed(src: Path, out: Path, **options: Any) -> PackReport:
    return pack(src, out, background="white", shard_bytes=SHARD, **options)


class Stop(BaseException):
    """Ends a pack from inside, as Ctrl-C does."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("resume") / "src")


@pytest.fixture(scope="module")
def whole(source: Path) -> tuple[dict[str, str], PackReport]:
    """An uninterrupted pack: its bytes and its report."""
    out = source.with_name("whole")
    report = packed(source, out)
    found = contents(out)
    assert sorted(found) == ["index.json", *(f"shard-0000{k}.h5" for k in range(len(found) - 1))]
    assert len(found) >= 4
    assert (report.objects, report.views, sum(report.skipped.counts.values())) == (9, 36, 18)
    return found, report


def test_stopped_at_each_object(source: Path, whole: tuple[dict[str, str], PackReport], tmp_path: Path) -> None:
    resumed: list[int] = []
    for stop in range(1, 10):
        out = tmp_path / str(stop)

        def interrupt(done: int, total: int | None, stop: int = stop) -> None:
            if done == stop:
                raise Stop

        with pytest.raises(Stop):
            packed(source, out, on_object=interrupt)
        assert not out.exists()
        partial = out.with_name(f"{out.name}.partial")
        if partial.exists():
            assert check_store(partial / "store").ok
        report = packed(source, out)
        resumed.append(report.resumed)
        assert (contents(out), report.objects, report.views) == (whole[0], 9, 36)
        assert (report.skipped, report.reencoded) == (whole[1].skipped, whole[1].reencoded)
        assert not partial.exists()
    assert resumed[0] == 0
    assert resumed == sorted(resumed)
    assert resumed[-1] >= 6


def in_child(work: Callable[[], None]) -> int:
    """The exit status of work that is done in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.process
def test_killed_at_each_change_of_the_folder(
    source: Path, whole: tuple[dict[str, str], PackReport], tmp_path: Path
) -> None:
    """The process dies before the n-th rename, removal, new folder or flush, for every n."""
    out, n, kills = tmp_path / "out", 0, 0
    while True:
        n += 1

        def work(n: int = n) -> None:
            left = [n]

            def dying(function: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **options)

                return call

            for owner, name in (
                (Path, "replace"),
                (Path, "rename"),
                (Path, "unlink"),
                (Path, "mkdir"),
                (Path, "rmdir"),
            ):
                setattr(owner, name, dying(getattr(owner, name)))
            os.fsync = dying(os.fsync)
            packed(source, out)

        status = in_child(work)
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            break
        kills += 1
        if not out.exists():
            packed(source, out)
        assert contents(out) == whole[0]
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
    assert kills > 20
    assert contents(out) == whole[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
@pytest.mark.process
def test_twenty_kills_of_the_command(tmp_path: Path) -> None:
    src = make_source(tmp_path / "src", objects=150, side=160)
    arguments = [str(src), "--background", "white", "--shard-size", "1"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    partial = tmp_path / "out.partial"
    seconds = _timed([*PACK, str(src), str(whole), *arguments[1:]], tmp_path / "whole.partial")
    expected = contents(whole)
    assert len(expected) >= 5
    command = [*PACK, str(src), str(out), *arguments[1:]]
    rng = random.Random(0)
    published: list[int] = []
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _wait_for(partial / "journal.json", process)
            time.sleep(rng.uniform(0, seconds / 3))
            process.kill()
        if out.exists():  # it was done before
            assert contents(out) == expected
            shutil.rmtree(out)
        store = partial / "store"
        if (store / "index.json").exists():
            with ViewStore(store) as opened:
                published.append(len(opened))
            assert check_store(store).ok
    assert published
    if not out.exists():
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "150 objects, 600 views" in done.stdout
        assert "skipped: 150 (truncated: the JPEG does not reach its end marker)" in done.stderr
        assert "encoded anew: 150 (alpha channel)" in done.stderr
    assert contents(out) == expected
    assert not partial.exists()


def _timed(command: list[str], appears: Path) -> float:
    """Seconds of the work itself, from when its folder appears."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _wait_for(appears, process)
        begin = time.perf_counter()
        assert process.wait() == 0
    return time.perf_counter() - begin


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)


@pytest.fixture
def interrupted(source: Path, tmp_path: Path) -> Path:
    """The output of a pack that was stopped with shards published."""
    src = tmp_path / "src"
    shutil.copytree(source, src)

    def interrupt(done: int, total: int | None) -> None:
        if done == 7:
            raise Stop

    with pytest.raises(Stop):
        packed(src, tmp_path / "out", on_object=interrupt)
    return tmp_path / "out"


def test_other_settings_are_refused(interrupted: Path) -> None:
    src = interrupted.with_name("src")
    with pytest.raises(DataError, match=r"out\.partial: holds an unfinished pack with background 'white', now 'black'"):
        pack(src, interrupted, background="black", shard_bytes=SHARD)
    with pytest.raises(DataError, match=r"with licence None, now 'MIT'"):
        packed(src, interrupted, licence="MIT")
    other = make_source(src.with_name("other"))
    with pytest.raises(DataError, match=r"with source '.*src', now '.*other'"):
        packed(other, interrupted)
    assert packed(src, interrupted).objects == 9


@pytest.mark.parametrize("change", ["removed", "renamed", "added"])
def test_another_source_is_refused(interrupted: Path, change: str) -> None:
    src = interrupted.with_name("src")
    if change == "removed":
        shutil.rmtree(src / "object-1")
    elif change == "renamed":
        (src / "object-0").rename(src / "object-00")
    else:
        shutil.copytree(src / "object-0", src / "a")
    with pytest.raises(DataError, match=r"its objects are not those that the interrupted pack in .*out\.partial saw"):
        packed(src, interrupted)
    assert not interrupted.exists()


def test_a_damaged_journal_is_one_line(interrupted: Path) -> None:
    journal = interrupted.with_name("out.partial") / "journal.json"
    journal.write_text(journal.read_text()[:100])
    with pytest.raises(DataError, match=r"journal\.json: damaged; remove .*out\.partial to start anew"):
        packed(interrupted.with_name("src"), interrupted)


def test_a_foreign_folder_in_the_way_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"out\.partial: is in the way: holds 'thesis\.tex' and no pack"):
        packed(source, tmp_path / "out")
    assert (tmp_path / "out.partial/thesis.tex").read_text() == "x"


def test_a_second_pack_of_the_same_store_waits_its_turn(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    errors: list[str] = []

    def second(done: int, total: int | None) -> None:
        if done == 1:
            with pytest.raises(DataError) as caught:
                packed(source, out)
            errors.append(str(caught.value))

    packed(source, out, on_object=second)
    assert errors == [f"{tmp_path}/out.partial: another process is writing this store; wait for it to end"]


def test_an_error_in_the_middle_keeps_what_is_published(source: Path, tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    shutil.copytree(source, src)
    (src / "object-7/metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata\.json: cannot be read as JSON \(\d objects are kept in .*partial"):
        packed(src, out)
    (src / "object-7/metadata.json").unlink()
    report = packed(src, out)
    assert report.resumed > 0
    assert report.objects == 9


FULL = """
import subprocess, sys
from pathlib import Path
from mvcore.cli.main import run
disk, src = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], check=True)
code = run(["data", "pack", src, str(disk / "out"), "--background", "white", "--shard-size", "1"])
print(sorted(path.name for path in disk.iterdir()), file=sys.stderr)
subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
again = run(["data", "pack", src, str(disk / "out"), "--background", "white", "--shard-size", "1"])
print(sorted(path.name for path in disk.iterdir()), file=sys.stderr)
sys.exit(code * 10 + again)
"""


@pytest.mark.process
def test_a_full_disk(tmp_path: Path) -> None:
    """On a real file system of 3 MB: nothing under OUT, how much was needed, and on with it once there is room."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a user namespace to mount a small disk")
    src = make_source(tmp_path / "src", objects=60, side=160)
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path / "disk"), str(src)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 20, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error", "["))]
    assert "No space left on device: " in lines[0]
    assert " bytes were to be written, " in lines[0]
    assert "objects are kept in" in lines[0]
    assert lines[1:] == ["['out.partial']", "['out']"]
    assert "60 objects, 240 views" in done.stdout
