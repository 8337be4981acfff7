"""Options of the evaluators. Imports neither torch nor open_clip."""

from __future__ import annotations

from typing import Annotated, Literal

from mvcore.api import Options
from pydantic import AfterValidator, Field

SCANOBJECTNN_CLASSES = (
    "bag",
    "bin",
    "box",
    "cabinet",
    "chair",
    "desk",
    "display",
    "door",
    "shelf",
    "table",
    "bed",
    "pillow",
    "sink",
    "sofa",
    "toilet",
)
"""The 15 classes of ScanObjectNN in the order of its labels."""


def check_template(template: str) -> str:
    """A prompt with one place for the class word.

    Raises:
        ValueError: it has none, or another.
    """
    try:
        filled = template.format("word") != template.format("other")
    except (IndexError, KeyError, ValueError):
        filled = False
    if not filled:
        raise ValueError(f"template {template!r} must hold one {{}} for the class word")
    return template


def _different(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"must all be different, not {list(values)}")
    return values


Positive = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Positive, ...], Field(min_length=1), AfterValidator(_different)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_different)]
Templates = Annotated[tuple[Annotated[str, AfterValidator(check_template)], ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class SubsetOptions(Options):
    """Which views stand for an object, and how they become its vector.

    Args:
        average: an object is the mean of its views' vectors as the model gives them (`raw`), or at unit length
            (`unit`); for models without the feature `object`.
        prefix_cache: below the first block that crosses views each view is computed once for all its subsets; else each
            subset is encoded from its images.
        sources: which sources are measured; None = all.
        train_ids: files with the ids of training objects: text with one id a line, CSV with a column `id` or `uid`, or
            JSON with ids as a list or as keys.
        train_run: a run's folder, the objects of whose data count as training objects too; `auto` is the run that the
            model was loaded from, where it is one.
        allow_overlap: measure on training objects all the same.
    """

    average: Literal["raw", "unit"] = "raw"
    prefix_cache: bool = True
    sources: tuple[str, ...] | None = None
    train_ids: tuple[str, ...] = ()
    train_run: str | None = None
    allow_overlap: bool = False


class ViewCountOptions(SubsetOptions):
    """`duoduo.view_count`: zero-shot accuracy of objects against the number of views.

    Args:
        counts: numbers of views.
        seeds: of the draws of views; figures are means over them.
        topk: an object counts as right when its class is among the k best.
        labels: CSV file of the objects to measure: a number, the name of the class and the object's id
            (`class_idx,class_name,uid` or `idx,name,id`); None = all objects of the source by their category.
        classes: the classes to choose among in the order of their numbers: a file (CSV, or text with one class a line,
            its number before a comma or not), a list of names, or a mapping from the data's category to the word in the
            prompt. None = those of `labels`, else all categories of the sources together.
        templates: `openai` for the 80 ImageNet prompts of CLIP, a list of prompts with `{}` for the class word, or a
            file: text with one prompt a line, or JSON (`FILE.json#KEY` for one list of several).
        prettify_underscores: `fire_engine` is written `fire engine` in the prompt.
        classifier: a class is the mean of its prompts' unit vectors (`normalised`), or of the vectors as the model
            gives them (`reference`, as the authors do).
        class_matrix: `.npy` file with the classes' vectors, (C, D) in the order of their numbers, in the place of
            prompts.
        allow_missing: measure although the source lacks objects of `labels`.
        picture: draw accuracy against the number of views.
        texts_per_batch: prompts encoded at once.
    """

    counts: Counts = (1, 2, 3, 4, 5, 6, 8, 10, 12)
    seeds: Seeds = (0, 1, 2)
    topk: Counts = (1, 3, 5)
    labels: str | None = None
    classes: dict[str, str] | Names | str | None = None
    templates: Literal["openai"] | Templates | str = "openai"
    prettify_underscores: bool = True
    classifier: Literal["normalised", "reference"] = "normalised"
    class_matrix: str | None = None
    allow_missing: bool = False
    picture: bool = True
    texts_per_batch: Positive = 256

    def needs(self) -> frozenset[str]:
        """Texts only where classes are made of prompts."""
        return frozenset({"view", "text"} if self.class_matrix is None else {"view"})


class ScanObjectNNOptions(ViewCountOptions):
    """`duoduo.scanobjectnn`: as `duoduo.view_count`, among the 15 classes of ScanObjectNN."""

    counts: Counts = (1, 5, 12)
    classes: dict[str, str] | Names | str | None = SCANOBJECTNN_CLASSES


class MVPNetOptions(ViewCountOptions):
    """`duoduo.mvpnet`: as `duoduo.view_count`, at the authors' numbers of views and not on a run's own objects."""

    counts: Counts = (1, 6, 12)
    train_run: str | None = "auto"


class TextToShapeOptions(SubsetOptions):
    """`duoduo.text_to_shape`: does a text find its shape among all shapes?

    Args:
        captions: CSV file of texts with the columns `modelId` and `description`, as Text2Shape gives them; None = the
            captions of the source.
        count: views of a shape.
        seed: of the draw of views.
        topk: of the recall rates.
        ndcg: the rank to which the discounted gain is summed.
        texts_per_batch: texts encoded at once.
    """

    captions: str | None = None
    count: Positive = 12
    seed: Annotated[int, Field(ge=0)] = 0
    topk: Counts = (1, 5)
    ndcg: Positive = 5
    texts_per_batch: Positive = 256
