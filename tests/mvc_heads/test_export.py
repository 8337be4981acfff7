"""A head on live features is exported beside the model, which plain open_clip loads without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mvcore.api import ViewBatch
from mvcore.config import Part
from mvcore.exporting import export, load_export
from mvcore.loading import make_run_pipeline
from mvcore.model import Model

VIEW = frozenset({"view"})


@pytest.mark.parametrize("head", [{"id": "mvc_heads.mlp"}, {"id": "mvc_heads.autoencoder", "bottleneck": 4}])
def test_a_head_is_exported_beside_the_model(tmp_path: Path, tiny_clip_json: Path, head: dict[str, object]) -> None:
    part = Part(id=str(head["id"]), args={key: value for key, value in head.items() if key != "id"})
    encoder = Part(id="core.open_clip", args={"model": str(tiny_clip_json)})
    model = Model(make_run_pipeline(encoder, {"head": part}, seed=3))
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = ViewBatch.make([2, 3], images=pixels)
    expected = model.features(batch, VIEW).view
    done = export(model, tmp_path / "export", adapters={"head": part})
    assert (done.merged, done.in_place, done.beside) == ((), (), ("head",))
    torch.testing.assert_close(Model(load_export(tmp_path / "export")).features(batch, VIEW).view, expected)
    plain = Model(load_export(tmp_path / "export", plain=True)).features(batch, VIEW).view
    untouched = Model(make_run_pipeline(encoder, {}, seed=3)).features(batch, VIEW).view
    torch.testing.assert_close(plain, untouched)
    assert not torch.allclose(plain, expected, atol=1e-2)
