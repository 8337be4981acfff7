"""Measurements of models: evaluators, the statistics behind them, and their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore.evaluation.similarity import consistency

__all__ = ["consistency"]


def __getattr__(name: str) -> Any:
    if name != "consistency":
        raise AttributeError(f"module 'mvcore.evaluation' has no attribute {name!r}")
    # Late, because it imports torch and this package is imported to list plugins.
    from mvcore.evaluation.similarity import consistency

    return consistency
