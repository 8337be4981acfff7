"""Options of core's evaluators. Imports neither torch nor open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mvcore.config_base import Options

LEDGER_MISSING = "Missing in the ledger"
"""Title of the ledger's table of what could not be measured and why."""

TextOf = Literal["auto", "captions", "category", "none"]


def _fillable(template: str) -> str:
    try:
        filled = template.format("word") != template.format("other")
    except (IndexError, KeyError, ValueError):
        filled = False
    if not filled:
        raise ValueError(f"template {template!r} must hold one {{}} for the class word")
    return template


Template = Annotated[str, AfterValidator(_fillable)]
Ranks = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class ZeroShotOptions(Options):
    """Zero-shot classification.

    Args:
        templates: `openai` for the 80 ImageNet prompts of CLIP, or a list of prompts with `{}` for the class word.
        classes: the classes to choose among: a list of category words, or a mapping from the data's category to the
            word in the prompt (so that two categories may share a word). None takes all categories of the sources
            together, so that every source is scored against the same classes.
        prettify_underscores: `fire_engine` is written `fire engine` in the prompt.
        topk: a view counts as right when its class is among the k best.
        groups: mean of top-1 over named groups of sources, as `{viewpoint: [ood, miro]}`.
        sources: which sources are measured; None = all.
        texts_per_batch: prompts encoded at once.
    """

    templates: Literal["openai"] | Annotated[tuple[Template, ...], Field(min_length=1)] = "openai"
    classes: dict[str, str] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    prettify_underscores: bool = True
    topk: Ranks = (1, 5)
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    sources: tuple[str, ...] | None = None
    texts_per_batch: Annotated[int, Field(ge=1)] = 256


class _TextOptions(Options):
    """Which text stands for an object.

    Args:
        text: `captions`: the data's captions, a view's own where it has them, else its object's. `category`: the
            category word in `template`. `auto`: captions where the source has them, else the category where every
            object has one, else none; and none of a model without text. `none`: no text.
        template: the prompt for `category`.
        sources: which sources are measured; None = all.
        texts_per_batch: texts encoded at once.
    """

    text: TextOf = "auto"
    template: Template = "a photo of a {}."
    sources: tuple[str, ...] | None = None
    texts_per_batch: Annotated[int, Field(ge=1)] = 256


class ConsistencyOptions(_TextOptions):
    """Same-object, different-object and text-to-image similarity.

    Args:
        picture: draw the view-by-view similarity map of each source whose objects have equally many views.
    """

    picture: bool = True


class RetrievalOptions(_TextOptions):
    """Recall among all views of a source.

    Args:
        topk: a query counts as found when one of its object's views is among the k most similar.
    """

    topk: Ranks = (1, 5)


class LedgerOptions(_TextOptions):
    """The ledger: consistency beside what it may have cost.

    Args:
        angle_step: degrees between the centres of the bins of relative angle.
        elevation_step: degrees between the centres of the bins of elevation.
        retrieval_objects: the most objects whose texts are told apart; of more, so many are taken evenly spaced.
        zero_shot: options of the zero-shot row; null leaves it out.
        maps: keep the view-by-view and all-pairs maps for the pictures.
    """

    angle_step: Annotated[float, Field(ge=1, le=180)] = 30.0
    elevation_step: Annotated[float, Field(ge=1, le=180)] = 10.0
    retrieval_objects: Annotated[int, Field(ge=2)] = 4096
    zero_shot: ZeroShotOptions | None = ZeroShotOptions(templates=("a photo of a {}.",))
    maps: bool = True


class ObjectRetrievalOptions(_TextOptions):
    """Retrieval of objects by texts and by views of their own.

    Args:
        topk: ranks at which recall and discounted gain are taken.
        depth: how many of the first objects are ranked; a right one further down counts 0 in the mean reciprocal rank.
        query_views: views of an object that ask for it and are held out of its vector; an object needs one more.
        seed: of their drawing.
    """

    topk: Ranks = (1, 5, 10)
    depth: Annotated[int, Field(ge=1)] = 100
    query_views: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0


def check_names(chosen: Sequence[str] | None, there: Sequence[str], owner: str) -> list[str]:
    """The chosen sources, or all of them.

    Raises:
        ConfigError: a chosen source that is not there.
    """
    from mvcore.errors import ConfigError

    for name in chosen or ():
        if name not in there:
            raise ConfigError(f"{owner}: no source {name!r} to measure on; there are: {', '.join(there) or 'none'}")
    return list(there if chosen is None else chosen)
