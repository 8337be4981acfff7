"""Whether this machine can render, found out in a child process: VTK kills the interpreter where OpenGL is missing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from mvcore.api import DeviceError

WINDOW_VARIABLE = "VTK_DEFAULT_OPENGL_WINDOW"
_LIMIT_S = 120
_FIRST_RENDER = """
import numpy, pyvista, trimesh
plotter = pyvista.Plotter(off_screen=True, window_size=[16, 16])
plotter.add_mesh(pyvista.Cube())
plotter.show(auto_close=False)
assert plotter.screenshot(return_img=True).shape == (16, 16, 3)
print(plotter.render_window.GetClassName(), flush=True)
"""


@functools.cache
def probe_renderer() -> str:
    """Try the first render in a child process; once it worked the answer is kept.

    Returns:
        The class of the window that VTK could open; processes that render set `WINDOW_VARIABLE` to it.

    Raises:
        DeviceError: The extra is not installed, or no OpenGL is there; one line that says what to install.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", _FIRST_RENDER], capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"rendering does not work here: the first picture took over {_LIMIT_S} s") from None
    if child.returncode == 0:
        return child.stdout.split()[-1]
    if "ModuleNotFoundError" in child.stderr:
        missing = child.stderr.strip().splitlines()[-1].removeprefix("ModuleNotFoundError: ")
        raise DeviceError(f"rendering needs an extra ({missing}): pip install 'mvcore-data[render]'")
    raise DeviceError(
        f"rendering does not work here: the first render ended with {_reason(child.returncode)}; OpenGL is missing: "
        "install libEGL or OSMesa (apt-get install libegl1 or libosmesa6)"
    )


def configure_process(window: str) -> None:
    """Prepare the environment of a process before it first imports VTK: its window, and one thread of software GL."""
    os.environ[WINDOW_VARIABLE] = window
    os.environ.setdefault("LP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _reason(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
