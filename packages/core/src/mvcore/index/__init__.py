"""Indexes of objects: the vectors of a store's objects or views, searched by text, by images or by vectors.

import mvcore.index

index = mvcore.index.build("shards/", "runs/duoduo-1")
index.save("chairs.index")
for hit in mvcore.index.load("chairs.index").search("a white couch", k=5)[0]:
    print(hit.rank, hit.score, hit.id)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore.index.building import build
    from mvcore.index.catalogue import Hit
    from mvcore.index.searching import Index, load

_LAZY = {
    "build": "mvcore.index.building",
    "Hit": "mvcore.index.catalogue",
    "Index": "mvcore.index.searching",
    "load": "mvcore.index.searching",
}

__all__ = ["Hit", "Index", "build", "load"]


def __getattr__(name: str) -> Any:
    # Late, because they import torch and the program's commands import this package.
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore.index' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
