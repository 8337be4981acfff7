"""Every name that a plugin may import.

Importing this module is cheap: names that need torch are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mvcore.errors import (
    ConfigError,
    DataError,
    DeviceError,
    MvcoreError,
    PluginError,
    WeightsError,
)
from mvcore.hookspecs import hookimpl
from mvcore.specs import (
    MVCORE_API,
    CheckResult,
    CheckSpec,
    CommandSpec,
    DatasetSpec,
    EncoderSpec,
    EvaluatorSpec,
    LossSpec,
    Problem,
    RecipeSpec,
    Section,
    TrainerSpec,
)

if TYPE_CHECKING:
    from mvcore.attention import attention_inputs
    from mvcore.build import build
    from mvcore.config_base import Options
    from mvcore.dense_grid import DenseGrid, sample_dense
    from mvcore.encoders.across_views import ViewSegments
    from mvcore.encoders.attention_sites import AttentionSite, attention_sites
    from mvcore.encoders.positions import check_dinov2_positions
    from mvcore.encoders.stages import Stages, stages_of
    from mvcore.evaluation.embedder import Embedder
    from mvcore.evaluation.files import write_atomic
    from mvcore.evaluation.results import EvalResult, Figure, Table, fingerprint
    from mvcore.evaluation.statistics import figure_over_objects, ratio_samples
    from mvcore.evaluation.zero_shot import label_ranks, openai_templates
    from mvcore.images import read_image
    from mvcore.loading import load, load_encoder
    from mvcore.lora import apply_lora, merge_lora
    from mvcore.model import Model
    from mvcore.model_key import model_key
    from mvcore.packing import concatenate
    from mvcore.parts import Adapter, Backbone, IndexedDataset, RunHandle, StreamDataset
    from mvcore.paths import resolve_path
    from mvcore.report.figures import draw_heat_maps, draw_lines, new_figure, save_figure
    from mvcore.run_folder import read_config
    from mvcore.types import Cameras, Features, Tracks, ViewBatch

_LAZY = {
    "attention_inputs": "mvcore.attention",
    "build": "mvcore.build",
    "Options": "mvcore.config_base",
    "DenseGrid": "mvcore.dense_grid",
    "sample_dense": "mvcore.dense_grid",
    "ViewSegments": "mvcore.encoders.across_views",
    "AttentionSite": "mvcore.encoders.attention_sites",
    "attention_sites": "mvcore.encoders.attention_sites",
    "check_dinov2_positions": "mvcore.encoders.positions",
    "Stages": "mvcore.encoders.stages",
    "stages_of": "mvcore.encoders.stages",
    "Embedder": "mvcore.evaluation.embedder",
    "EvalResult": "mvcore.evaluation.results",
    "Figure": "mvcore.evaluation.results",
    "Table": "mvcore.evaluation.results",
    "draw_lines": "mvcore.report.figures",
    "figure_over_objects": "mvcore.evaluation.statistics",
    "fingerprint": "mvcore.evaluation.results",
    "read_image": "mvcore.images",
    "write_atomic": "mvcore.evaluation.files",
    "load": "mvcore.loading",
    "load_encoder": "mvcore.loading",
    "Model": "mvcore.model",
    "model_key": "mvcore.model_key",
    "apply_lora": "mvcore.lora",
    "merge_lora": "mvcore.lora",
    "Adapter": "mvcore.parts",
    "Backbone": "mvcore.parts",
    "IndexedDataset": "mvcore.parts",
    "RunHandle": "mvcore.parts",
    "StreamDataset": "mvcore.parts",
    "Cameras": "mvcore.types",
    "Features": "mvcore.types",
    "Tracks": "mvcore.types",
    "ViewBatch": "mvcore.types",
    "concatenate": "mvcore.packing",
    "label_ranks": "mvcore.evaluation.zero_shot",
    "openai_templates": "mvcore.evaluation.zero_shot",
    "ratio_samples": "mvcore.evaluation.statistics",
    "read_config": "mvcore.run_folder",
    "resolve_path": "mvcore.paths",
    "draw_heat_maps": "mvcore.report.figures",
    "new_figure": "mvcore.report.figures",
    "save_figure": "mvcore.report.figures",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore.api' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "MVCORE_API",
    "Adapter",
    "AttentionSite",
    "Backbone",
    "Cameras",
    "CheckResult",
    "CheckSpec",
    "CommandSpec",
    "ConfigError",
    "DataError",
    "DatasetSpec",
    "DenseGrid",
    "DeviceError",
    "Embedder",
    "EncoderSpec",
    "EvalResult",
    "EvaluatorSpec",
    "Features",
    "Figure",
    "IndexedDataset",
    "LossSpec",
    "Model",
    "MvcoreError",
    "Options",
    "PluginError",
    "Problem",
    "RecipeSpec",
    "RunHandle",
    "Section",
    "Stages",
    "StreamDataset",
    "Table",
    "Tracks",
    "TrainerSpec",
    "ViewBatch",
    "ViewSegments",
    "WeightsError",
    "apply_lora",
    "attention_inputs",
    "attention_sites",
    "build",
    "check_dinov2_positions",
    "concatenate",
    "draw_heat_maps",
    "draw_lines",
    "figure_over_objects",
    "fingerprint",
    "hookimpl",
    "label_ranks",
    "load",
    "load_encoder",
    "merge_lora",
    "model_key",
    "new_figure",
    "openai_templates",
    "ratio_samples",
    "read_config",
    "read_image",
    "resolve_path",
    "sample_dense",
    "save_figure",
    "stages_of",
    "write_atomic",
]
