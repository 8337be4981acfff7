"""Zero-shot classification of views by the names of their classes (Radford et al. 2021, section 3.1).

The classifier of a class is the mean of the unit text vectors of its prompts, at unit length again; a view goes to the
class of the largest cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mvcore.errors import ConfigError, DataError
from mvcore.evaluation.embedder import Embedder, naming_source
from mvcore.evaluation.options import ZeroShotOptions, check_names
from mvcore.evaluation.results import EvalResult, Figure, Table, fingerprint
from mvcore.evaluation.statistics import figure_over_objects, group_means, ratio_samples
from mvcore.evaluation.viewpoints import nearest_step
from mvcore.model import Model
from mvcore.parts import Embedded, IndexedDataset

ID = "core.zero_shot"
LOGIT_SCALE = 100.0
"""The factor of CLIP's published evaluation; it changes no ranking."""
_ROWS = 4096


def openai_templates() -> list[Callable[[str], str]]:
    """The 80 ImageNet prompts of CLIP, as open_clip ships them."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return list(OPENAI_IMAGENET_TEMPLATES)


def build_classifier(
    encode_text: Callable[[list[str]], Tensor],
    classes: Sequence[str],
    templates: Sequence[str | Callable[[str], str]],
    *,
    texts_per_batch: int = 256,
) -> Tensor:
    """(D, C) unit columns, one a class, in order; equal names get equal columns.

    Args:
        encode_text: (T,) texts to (T, D) vectors of any length.
        classes: C class words.
        templates: prompts with `{}` for the word, or functions of it.
        texts_per_batch: texts given to `encode_text` at once.

    Raises:
        ValueError: no class or no template.
    """
    if not classes or not templates:
        raise ValueError(f"a classifier needs classes and templates, not {len(classes)} and {len(templates)}")
    texts = [t.format(c) if isinstance(t, str) else t(c) for c in classes for t in templates]
    vectors = [
        normalize(encode_text(texts[start : start + texts_per_batch]).float(), dim=-1)
        for start in range(0, len(texts), texts_per_batch)
    ]
    per_class = torch.cat(vectors).view(len(classes), len(templates), -1).mean(dim=1)
    return normalize(per_class, dim=-1).T.contiguous()


def zero_shot_logits(views: Tensor, classifier: Tensor) -> Tensor:
    """(N, C) cosines of (N, D) views, of any length, and a (D, C) classifier, times 100."""
    return LOGIT_SCALE * normalize(views, dim=-1) @ classifier.to(views)


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) how many classes stand before each view's own one; of equal logits the lower index stands first.

    Raises:
        ValueError: shapes that do not fit, a label outside the classes, or a logit that is not a number.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (N, C) and labels (N,), not {tuple(logits.shape)} and {tuple(labels.shape)}")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, not {int(labels.min())}..{int(labels.max())}")
    if bool(logits.isnan().any()):
        raise ValueError("logits hold NaN, so no class can be ranked")
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(dim=1)


@dataclass(frozen=True)
class _Classes:
    """The classes that every source is scored against."""

    categories: tuple[str, ...]
    words: tuple[str, ...]

    def indices(self, source: str, dataset: IndexedDataset) -> Tensor:
        """(O,) class index of each object.

        Raises:
            DataError: an object without a category, or with one that is not exactly once among the classes.
        """
        places: dict[str, list[int]] = {}
        for i, category in enumerate(self.categories):
            places.setdefault(category, []).append(i)
        labels: list[int] = []
        for i in range(len(dataset)):
            category = dataset.category(i)
            where = f"{ID}: object {dataset.object_name(i)!r} of source {source!r}"
            if category is None:
                raise DataError(f"{where} has no category; give it one or leave the source out")
            at = places.get(category, [])
            if len(at) != 1:
                what = f"at {len(at)} places" if at else "not"
                raise DataError(
                    f"{where} is of category {category!r}, which is {what} among the classes;"
                    " give classes as a mapping from each category to its word"
                )
            labels += at
        return torch.tensor(labels)


class ZeroShot:
    """Top-k accuracy over views, `core.zero_shot/top1/<source>`, with intervals over objects.

    Also `core.zero_shot/agreement/<source>`, the share of an object's views that have its most common prediction, and
    where cameras are known `core.zero_shot/azimuth/<source>/<degrees>`, top-1 by viewpoint.
    """

    def __init__(self, **options: Any) -> None:
        self.options = ZeroShotOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: the model encodes no text, or an unknown source is chosen.
            DataError: an object without a category, or with one that is not among the classes.
        """
        embedder = Embedder.of(model)
        if not embedder.has_text:
            raise ConfigError(f"{ID}: this model encodes no text, so it cannot classify by names; leave it out")
        names = check_names(self.options.sources, list(sources), ID)
        self._check_groups(names)
        classes = self._classes({name: sources[name] for name in names})
        labels = {name: classes.indices(name, sources[name]) for name in names}
        templates = openai_templates() if self.options.templates == "openai" else self.options.templates
        per_batch = self.options.texts_per_batch
        classifier = build_classifier(
            lambda texts: embedder.encode_texts(texts, per_batch), classes.words, templates, texts_per_batch=per_batch
        ).cpu()
        figures: list[Figure] = []
        tables: list[Table] = []
        for name in names:
            embedded = embedder.embed(name, sources[name])
            ranks, predicted = _classify(embedded, classifier, labels[name], name)
            found, table = self._source(name, sources[name], embedded, ranks, predicted, labels[name], classes)
            figures += [*found, *_by_azimuth(name, embedder.azimuths(name, sources[name]), ranks)]
            tables.append(table)
        return EvalResult([*figures, *self._groups(figures)], tables)

    def _check_groups(self, names: Sequence[str]) -> None:
        for group, members in self.options.groups.items():
            if group in names:
                raise ConfigError(f"{ID}: group {group!r} has the name of a source; name it otherwise")
            check_names(members, names, f"{ID}, group {group!r}")

    def _classes(self, sources: Mapping[str, IndexedDataset]) -> _Classes:
        chosen = self.options.classes
        if isinstance(chosen, dict):
            categories, words = tuple(chosen), tuple(chosen.values())
        elif chosen is not None:
            categories = words = tuple(chosen)
        else:
            seen = {dataset.category(i) for dataset in sources.values() for i in range(len(dataset))}
            categories = words = tuple(sorted(category for category in seen if category is not None))
        if not categories:
            raise DataError(f"{ID}: no object of {', '.join(sources)} has a category, so there is no class to choose")
        if self.options.prettify_underscores:
            words = tuple(word.replace("_", " ") for word in words)
        return _Classes(categories, words)

    def _source(
        self,
        name: str,
        dataset: IndexedDataset,
        embedded: Embedded,
        ranks: Tensor,
        predicted: Tensor,
        labels: Tensor,
        classes: _Classes,
    ) -> tuple[list[Figure], Table]:
        owners, n_objects = embedded.object_of_view, len(dataset)
        counts = torch.bincount(owners, minlength=n_objects).double().numpy()
        items = fingerprint([dataset.object_name(i) for i in range(n_objects)])
        chance = f"among {len(classes.words)} classes"
        figures: list[Figure] = []
        for k in self.options.topk:
            right = torch.zeros(n_objects, dtype=torch.float64).index_add_(0, owners, (ranks < k).double())
            figures.append(
                figure_over_objects(
                    f"{ID}/top{k}/{name}",
                    ratio_samples(right.numpy(), counts),
                    f"Share of views of {name} whose class is among the {k} most similar {chance}, 0 to 1.",
                    n=len(ranks),
                    items=items,
                    headline=f"top-{k} {name}" if k == min(self.options.topk) else "",
                    percent=True,
                )
            )
        modal = _modal_counts(owners, predicted, n_objects, len(classes.words))
        figures.append(
            figure_over_objects(
                f"{ID}/agreement/{name}",
                ratio_samples(modal.numpy(), counts),
                f"Share of views of {name} that have the most common prediction of their object, 0 to 1.",
                n=len(ranks),
                items=items,
                percent=True,
            )
        )
        return figures, _per_class(name, ranks, labels[owners], classes)

    def _groups(self, figures: Sequence[Figure]) -> list[Figure]:
        k = min(self.options.topk)
        prefix = f"{ID}/top{k}/"
        values = {f.name.removeprefix(prefix): f.value for f in figures if f.name.startswith(prefix)}
        n = {f.name.removeprefix(prefix): f.n for f in figures}
        means = group_means(values, self.options.groups)
        return [
            Figure(
                f"{prefix}{group}",
                mean,
                sum(n[member] for member in self.options.groups[group]),
                f"Mean top-{k} accuracy over {', '.join(self.options.groups[group])}, 0 to 1.",
                percent=True,
            )
            for group, mean in means.items()
        ]


def _classify(embedded: Embedded, classifier: Tensor, labels: Tensor, source: str) -> tuple[Tensor, Tensor]:
    """(N,) rank of each view's class and (N,) predicted class, in float64 so that they hang on no batch size."""
    views, ranks, predicted = embedded.features["view"], list[Tensor](), list[Tensor]()
    for rows, own in zip(views.split(_ROWS), labels[embedded.object_of_view].split(_ROWS), strict=True):
        logits = zero_shot_logits(rows.double(), classifier)
        with naming_source(ID, source):
            ranks.append(label_ranks(logits, own))
        predicted.append(logits.argmax(dim=1))
    return torch.cat(ranks), torch.cat(predicted)


def _modal_counts(owners: Tensor, predicted: Tensor, n_objects: int, n_classes: int) -> Tensor:
    """(O,) how many views of each object have its most common prediction."""
    keys, counts = torch.unique(owners * n_classes + predicted, return_counts=True)
    modal = torch.zeros(n_objects, dtype=torch.float64)
    return modal.scatter_reduce_(0, keys // n_classes, counts.double(), reduce="amax")


def _by_azimuth(source: str, angles: Tensor, ranks: Tensor) -> list[Figure]:
    known = ~angles.isnan()
    steps, right = nearest_step(angles[known]), (ranks[known] < 1).double()
    return [
        Figure(
            f"{ID}/azimuth/{source}/{step}",
            float(right[steps == step].mean()),
            int((steps == step).sum()),
            f"Top-1 accuracy of views of {source} whose camera's azimuth is nearest to {step} degrees, 0 to 1.",
            percent=True,
        )
        for step in torch.unique(steps).tolist()
    ]


def _per_class(source: str, ranks: Tensor, labels: Tensor, classes: _Classes) -> Table:
    right = np.bincount(labels[ranks < 1].numpy(), minlength=len(classes.categories))
    views = np.bincount(labels.numpy(), minlength=len(classes.categories))
    rows = [
        (category, str(n), f"{100 * hits / n:.1f}")
        for category, hits, n in zip(classes.categories, right, views, strict=True)
        if n
    ]
    return Table(f"Top-1 by class, {source}", ("class", "views", "top-1 %"), rows)
