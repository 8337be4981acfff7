"""The plugin `mvc_heads`: the multi-view heads. Its parts are not written yet, so it registers nothing."""

from __future__ import annotations

MVCORE_API = 1
