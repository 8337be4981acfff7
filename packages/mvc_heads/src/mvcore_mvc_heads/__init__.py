"""Multi-view heads (Laugaland & Korth 2024) as a plugin of mvcore: small networks that make frozen embeddings agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore_mvc_heads.heads import MLPHead, ViewAutoencoder
    from mvcore_mvc_heads.losses import autoencoder_loss, contrastive_loss, object_similarity_loss
    from mvcore_mvc_heads.report import reconstruction, rms_distance

_LAZY = {
    "MLPHead": "mvcore_mvc_heads.heads",
    "ViewAutoencoder": "mvcore_mvc_heads.heads",
    "autoencoder_loss": "mvcore_mvc_heads.losses",
    "contrastive_loss": "mvcore_mvc_heads.losses",
    "object_similarity_loss": "mvcore_mvc_heads.losses",
    "reconstruction": "mvcore_mvc_heads.report",
    "rms_distance": "mvcore_mvc_heads.report",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore_mvc_heads' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "MLPHead",
    "ViewAutoencoder",
    "autoencoder_loss",
    "contrastive_loss",
    "object_similarity_loss",
    "reconstruction",
    "rms_distance",
]
