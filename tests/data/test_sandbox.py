"""What crashes, hangs or takes too much does so in a child process, and a shard is tried there before it is opened."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter, sandbox, seal

pytestmark = pytest.mark.process
MEMORY = 4 << 30


def call(function: str, *arguments: object, seconds: float = 30, memory: int = MEMORY) -> object:
    return sandbox.call(function, *arguments, seconds=seconds, memory=memory)


def store(path: Path) -> Path:
    """A store that this library wrote."""
    with ViewStoreWriter(path) as writer:
        writer.add_object("a", np.zeros((2, 8, 8, 3), np.uint8))
    return path


def test_a_call_gives_what_the_function_gives() -> None:
    assert call("math:hypot", 3, 4) == 5
    assert call("os:getpid") != os.getpid()


def test_each_way_to_end_is_named() -> None:
    with pytest.raises(sandbox.SandboxError, match=r"kills the library that reads it \(SIGSEGV\)"):
        call("ctypes:string_at", 0)
    with pytest.raises(sandbox.SandboxError, match="took more than 0 s"):
        call("time:sleep", 100, seconds=0.1)
    with pytest.raises(sandbox.SandboxError, match=r"fails \(MemoryError\)"):
        call("builtins:bytearray", 100 << 30)
    with pytest.raises(sandbox.SandboxError, match=r"without an answer \(exit code 3\)"):
        call("os:_exit", 3)
    with pytest.raises(DataError, match="no such file or folder"):
        call("mvcore_data.store:ViewStore", "/nothing/here")
    assert call("math:hypot", 3, 4) == 5


def test_a_relative_path_means_what_it_means_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):  # the server started elsewhere
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert call("os:getcwd") == str(tmp_path / name)


def test_a_child_outlives_nobody_for_long(tmp_path: Path) -> None:
    """A hung child whose server was killed ends by its own limit of processor time."""
    started = tmp_path / "pid"
    code = f"import os; open({str(started)!r}, 'w').write(str(os.getpid()))\nwhile True: pass"

    def hang() -> None:
        with pytest.raises(sandbox.SandboxError):
            call("builtins:exec", code, seconds=1)

    caller = threading.Thread(target=hang)
    caller.start()
    while not started.exists() or not started.read_text():
        time.sleep(0.01)
    child = int(started.read_text())
    os.kill(int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)
    caller.join()


def _runs(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_large_answer_comes_whole() -> None:
    assert call("string:capwords", "ab " * 200_000) == "Ab " * 199_999 + "Ab"


def test_a_server_that_died_is_started_again() -> None:
    call("os:getppid")
    os.kill(int(str(call("os:getppid"))), signal.SIGKILL)
    time.sleep(0.05)
    assert call("math:hypot", 3, 4) == 5


def test_threads_and_forked_processes_get_their_own_answers() -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda k=k: found.append((k, call("math:hypot", k, 0)))) for k in range(8)]
    for thread in threads:
        thread.start()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, str(call("os:getppid")).encode())
        os._exit(0)
    for thread in threads:
        thread.join()
    os.waitpid(child, 0)
    assert sorted(found, key=str) == [(k, float(k)) for k in range(8)]
    assert os.read(receive, 64) != str(call("os:getppid")).encode()


def tried() -> int:
    """Files that were tried or written so far."""
    file = Path(os.environ["XDG_CACHE_HOME"]) / "mvcore" / "opened-shards"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_file_is_tried_once_and_one_of_our_own_never(tmp_path: Path) -> None:
    ours = store(tmp_path / "ours")
    before = tried()
    ViewStore(ours).close()
    assert tried() == before
    copy = shutil.copytree(ours, tmp_path / "copy")
    for _ in range(3):
        ViewStore(copy).close()
        assert tried() == before + 1
    os.utime(copy / "shard-00000.h5", ns=(1, 1))  # changed, for all one knows
    ViewStore(copy).close()
    assert tried() == before + 2


def test_without_a_cache_folder_a_file_is_tried_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = store(tmp_path / "store.h5")
    for _ in range(2):
        with ViewStore(path) as opened:
            assert len(opened) == 1


def test_the_list_of_known_files_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "mvcore" / "opened-shards"
    file.parent.mkdir()
    file.write_bytes((b"0" * 64 + b"\n") * 20_000)
    path = store(tmp_path / "store.h5")
    assert file.stat().st_size < 700_000
    assert set(map(len, file.read_text().split())) == {64}
    shutil.copy(path, tmp_path / "copy.h5")
    ViewStore(tmp_path / "copy.h5").close()


def test_metadata_that_crashes_hdf5_crashes_a_child(tmp_path: Path) -> None:
    """A seal that fits, over metadata that HDF5 does not survive or at least refuses: the parent lives."""
    path = store(tmp_path / "store.h5")
    sound = path.read_bytes()
    with path.open("rb") as file:
        written = seal.read(file.fileno(), "")
    assert written is not None
    rng = np.random.default_rng(0)
    outcomes: set[bytes] = set()
    lines: list[str] = []
    for _ in range(40):
        damaged = bytearray(sound)
        for position in rng.integers(seal.USER_BLOCK, 3000, 3):
            damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        seal.write(path, written.blobs)
        try:
            with ViewStore(path) as opened:
                outcomes.add(opened.image(0).tobytes())
        except DataError as error:
            lines.append(str(error))
            outcomes.add(b"refused")
    assert all("store.h5" in line and "\n" not in line for line in lines)
    assert outcomes <= {b"refused", bytes(8 * 8 * 3)}
    assert b"refused" in outcomes
