"""Runs a function in a process of its own with limits of time and memory, for files that may crash or hang a library.

A server, a bare interpreter that has only imported what reads a store, forks a child for each call: 5 ms instead of the
half second that an interpreter takes to start, and nothing of this process (threads, CUDA, OpenGL) is in the fork. The
server ends when this process does, or when nothing was asked of it for a while.
"""

from __future__ import annotations

import atexit
import importlib
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from mvcore.api import DataError

_IDLE_SECONDS = 60
_GRACE_SECONDS = 30
_START_SECONDS = 60
_MAX_ANSWER = 1 << 26
_READY = b"ready\n"

inside = False
"""Whether this process is such a child."""


class SandboxError(Exception):
    """A call ended without an answer; the text says how, as in "took more than 5 s"."""


class _Server:
    """The process that forks, as its parent sees it."""

    def __init__(self) -> None:
        # The modules of this process, wherever it has them from; not those of the folder that it stands in.
        places = [place for place in sys.path if place]
        code = f"import sys; sys.path[:] = {places!r}; from mvcore_data import sandbox; sandbox.serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for this process; the server sees its end
        )
        if self._answer(_START_SECONDS) != _READY:
            raise SandboxError("its process did not start")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One call, whatever becomes of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._answer(request["seconds"] + _GRACE_SECONDS))

    def end(self) -> None:
        """Stops the server and what it runs."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
        self._process.kill()
        self._process.wait()

    def _answer(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        fd, deadline, answer = self._process.stdout.fileno(), time.monotonic() + seconds, b""
        while not answer.endswith(b"\n"):
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SandboxError("got no answer in time")
            part = os.read(fd, 1 << 16)
            if not part:
                raise BrokenPipeError
            answer += part
        return answer


_lock = threading.Lock()
_server: _Server | None = None


def _forget_server() -> None:
    global _lock, _server
    _lock, _server = threading.Lock(), None  # the parent's pipes are its own, and a thread of it may have the lock


os.register_at_fork(after_in_child=_forget_server)


def call(function: str, *arguments: Any, seconds: float, memory: int) -> Any:
    """Calls a function in a child process.

    Args:
        function: as `package.module:name`.
        arguments: plain values, as JSON has them.
        seconds: the child's limit.
        memory: the child's limit in bytes of address space.

    Returns:
        What the function returns, as JSON gives it back.

    Raises:
        DataError: the function raised one.
        SandboxError: the child was killed, took too long or failed in another way.
    """
    try:
        folder = os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        folder = "/"
    request = {"function": function, "arguments": arguments, "folder": folder, "seconds": seconds, "memory": memory}
    with _lock:
        answer = _ask(request)
    if "value" in answer:
        return answer["value"]
    if "fault" in answer:
        raise DataError(answer["fault"])
    raise SandboxError(answer["failed"])


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    global _server
    for last in (False, True):
        try:
            _server = _server or _Server()
            return _server.ask(request)
        except OSError:  # it ended because it was idle
            _drop_server()
            if last:
                raise SandboxError("its process ended") from None
        except BaseException:
            _drop_server()
            raise
    raise AssertionError


@atexit.register
def _drop_server() -> None:
    global _server
    if _server is not None:
        _server.end()
    _server = None


def serve() -> None:
    """The server's loop: a request a line in, an answer a line out, until its parent ends or is silent."""
    import mvcore_data.store  # noqa: F401 - so that the children have it

    os.write(1, _READY)
    while select.select([0], [], [], _IDLE_SECONDS)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        os.write(1, json.dumps(_in_child(json.loads(line))).encode() + b"\n")


def _in_child(request: dict[str, Any]) -> dict[str, Any]:
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _run(request, send)
    os.close(send)
    answer = _collect(receive, request["seconds"])
    os.close(receive)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer is None:
        return {"failed": f"took more than {request['seconds']:.0f} s"}
    if status < 0:
        return {"failed": f"kills the library that reads it ({signal.Signals(-status).name})"}
    try:
        return json.loads(answer)
    except ValueError:
        return {"failed": f"ended without an answer (exit code {status})"}


def _collect(receive: int, seconds: float) -> bytes | None:
    """What the child writes until it ends; None when it takes too long, or when nobody waits for it any more."""
    deadline, answer = time.monotonic() + seconds, b""
    while len(answer) < _MAX_ANSWER:
        ready = select.select([receive, 0], [], [], max(0.0, deadline - time.monotonic()))[0]
        if receive not in ready:
            return None  # too late; or a byte of the parent, which asks nothing before its answer: its end
        part = os.read(receive, 1 << 16)
        if not part:
            return answer
        answer += part
    return None


def _run(request: dict[str, Any], send: int) -> None:
    """The child: never returns."""
    global inside
    inside = True
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Should the server be killed meanwhile, nobody else would end a child that hangs.
        processor = math.ceil(request["seconds"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (processor, processor))
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
        os.chdir(request["folder"])
        module, _, name = request["function"].partition(":")
        answer = {"value": getattr(importlib.import_module(module), name)(*request["arguments"])}
    except DataError as error:
        answer = {"fault": str(error)}
    except BaseException as error:
        answer = {"failed": f"fails ({type(error).__name__})"}
    with suppress(BaseException):
        data = memoryview(json.dumps(answer).encode())
        while data:
            data = data[os.write(send, data) :]
    os._exit(0)
