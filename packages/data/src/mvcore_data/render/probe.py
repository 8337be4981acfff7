"""Whether this machine can render, found out in a child process: VTK kills the interpreter where OpenGL is missing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile

from mvcore.api import DeviceError

WINDOW_VARIABLE = "VTK_DEFAULT_OPENGL_WINDOW"
_LIMIT_S = 120
_FIRST_PYVISTA = """
import numpy, pyvista, trimesh
plotter = pyvista.Plotter(off_screen=True, window_size=[16, 16])
plotter.add_mesh(pyvista.Cube())
plotter.show(auto_close=False)
assert plotter.screenshot(return_img=True).shape == (16, 16, 3)
print(plotter.render_window.GetClassName(), flush=True)
"""
_FIRST_BLENDER = """
import sys
import bpy, pyvista, trimesh
from mvcore_data.render.blender_renderer import first_render
first_render(*sys.argv[1:])
"""


@functools.cache
def probe_renderer(renderer: str = "pyvista", device: str = "cpu") -> str:
    """Try the first render in a child process; once it worked the answer is kept.

    Args:
        renderer: ``pyvista`` or ``blender``.
        device: Of Blender, ``cpu`` or ``gpu``.

    Returns:
        The class of the window that VTK could open; processes that render set `WINDOW_VARIABLE` to it. Empty for
        Blender, which opens none.

    Raises:
        DeviceError: The extra is not installed, or no OpenGL or GPU is there; one line that says what to install.
    """
    return _probe_pyvista() if renderer == "pyvista" else _probe_blender(device)


def configure_process(window: str) -> None:
    """Prepare the environment of a process before it first imports VTK: its window, and one thread of software GL."""
    if window:
        os.environ[WINDOW_VARIABLE] = window
    os.environ.setdefault("LP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _probe_pyvista() -> str:
    child = _try(_FIRST_PYVISTA)
    if child.returncode == 0:
        return child.stdout.split()[-1]
    if missing := _said(child, "ModuleNotFoundError"):
        raise DeviceError(f"rendering needs an extra ({missing}): pip install 'mvcore-data[render]'")
    raise DeviceError(
        f"rendering does not work here: the first render ended with {_reason(child.returncode)}; OpenGL is missing: "
        "install libEGL or OSMesa (apt-get install libegl1 or libosmesa6)"
    )


def _probe_blender(device: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        child = _try(_FIRST_BLENDER, device, scratch)
    if child.returncode == 0:
        return ""
    if missing := _said(child, "ModuleNotFoundError"):
        raise DeviceError(
            f"the Blender renderer needs an extra ({missing}): pip install 'mvcore-data[blender]', in an environment "
            "of its own with Python 3.11 or 3.13 and numpy below 2"
        )
    if library := _said(child, "ImportError"):
        raise DeviceError(f"Blender cannot be loaded ({library}); install that library (apt-get install libsm6 libxi6)")
    why = _said(child, "mvcore.errors.DeviceError") or f"the first render ended with {_reason(child.returncode)}"
    raise DeviceError(f"rendering with Blender does not work here: {why}")


def _try(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"rendering does not work here: the first picture took over {_LIMIT_S} s") from None


def _said(child: subprocess.CompletedProcess[str], error: str) -> str:
    """What an error says that ended the child; empty if another one did."""
    last = (child.stderr.strip().splitlines() or [""])[-1]
    return last.removeprefix(f"{error}: ") if last.startswith(f"{error}: ") else ""


def _reason(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
