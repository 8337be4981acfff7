"""`mvcore search`: short for `mvcore index search`."""

from __future__ import annotations

from mvcore.cli.index import search

__all__ = ["search"]
