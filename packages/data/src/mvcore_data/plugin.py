"""What mvcore-data offers: two data sources and the `mvcore data` commands."""

from __future__ import annotations

from mvcore.api import CommandSpec, DatasetSpec, hookimpl

MVCORE_API = 1


@hookimpl
def mvcore_register_datasets() -> list[DatasetSpec]:
    """The data sources."""
    return [
        DatasetSpec(
            name="views",
            summary="Objects seen from many viewpoints, from a multi-view store",
            factory="mvcore_data.views:Views",
            config="mvcore_data.options:ViewsOptions",
        ),
        DatasetSpec(
            name="image_text",
            summary="Images with captions, one view an object, from a JSON list",
            factory="mvcore_data.image_text:ImageText",
            config="mvcore_data.options:ImageTextOptions",
        ),
    ]


@hookimpl
def mvcore_register_commands() -> list[CommandSpec]:
    """The commands."""
    return [
        CommandSpec(
            name="data",
            summary="Make, check, describe and split multi-view stores.",
            factory="mvcore_data.cli:app",
        )
    ]
