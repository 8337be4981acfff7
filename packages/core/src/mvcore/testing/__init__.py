"""Checks for authors of plugins: does a part keep its contract? The project's own packages go through the same.

    from mvcore.testing import assert_plugin_ok, check_loss

    def test_the_plugin():
        assert_plugin_ok("mymethod")

    def test_the_loss_with_a_margin():
        check_loss("mymethod.triplet", args={"margin": 0.5})

Each check tries one part on small data that is made on the spot, and raises a `ConformanceError` with one line for each
fault; `mvcore plugins check NAME` does the same from the command line.
"""

from __future__ import annotations

from mvcore.testing.datasets import check_dataset
from mvcore.testing.encoders import check_encoder
from mvcore.testing.evaluators import check_evaluator
from mvcore.testing.findings import ConformanceError, Finding
from mvcore.testing.losses import check_loss
from mvcore.testing.plugins import assert_plugin_ok
from mvcore.testing.trainers import check_trainer

__all__ = [
    "ConformanceError",
    "Finding",
    "assert_plugin_ok",
    "check_dataset",
    "check_encoder",
    "check_evaluator",
    "check_loss",
    "check_trainer",
]
