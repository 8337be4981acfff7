"""What the tests of rendering share."""

from __future__ import annotations

import os

import pytest
from mvcore.api import DeviceError


@pytest.fixture(scope="session")
def gl() -> str:
    """The window class that rendering uses here; skips where there is no OpenGL."""
    pytest.importorskip("pyvista", reason="needs mvcore-data[render]")
    from mvcore_data.render.probe import probe_renderer

    os.environ.pop("DISPLAY", None)
    try:
        return probe_renderer()
    except DeviceError as error:
        pytest.skip(str(error))
