"""Evaluators blame broken features for what the pure functions refuse, and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mvcore.errors import DataError, WeightsError
from mvcore.evaluation.view_consistency import Consistency
from mvcore.loading import chosen_encoder
from mvcore.model import Model
from mvcore.training.assembly import make_pipeline


def measured(lab: Any, folder: Path, change: Any) -> None:
    model = Model(make_pipeline(chosen_encoder({"model": str(lab.clip)}), [], seed=0))
    change(model.backbone)
    sources = lab.session(lab.values()).sources
    Consistency(picture=False)(model, sources, folder)


def test_a_tokenizer_that_cannot_be_had_is_not_called_a_broken_feature(lab: Any, tmp_path: Path) -> None:
    def without_tokenizer(backbone: Any) -> None:
        def unreachable() -> Any:
            raise WeightsError("cannot load the tokenizer")

        backbone._make_tokenizer = unreachable

    with pytest.raises(WeightsError, match=r"cannot load the tokenizer$"):
        measured(lab, tmp_path, without_tokenizer)


def test_a_feature_without_direction_is_named_with_its_source(lab: Any, tmp_path: Path) -> None:
    def silent(backbone: Any) -> None:
        with torch.no_grad():
            backbone.model.visual.proj.zero_()

    with pytest.raises(DataError, match=r"core\.consistency on source 'objects'.*broken features"):
        measured(lab, tmp_path, silent)
