"""The plugin `equivariance`: 3D-equivariance tuning. Its parts are not written yet, so it registers nothing."""

from __future__ import annotations

MVCORE_API = 1
