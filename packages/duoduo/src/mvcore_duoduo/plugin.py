"""The plugin `duoduo`: Duoduo CLIP. Its parts are not written yet, so it registers nothing."""

from __future__ import annotations

MVCORE_API = 1
