"""The classes that objects are told apart by: their names, the objects' labels, and their vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mvcore.api import ConfigError, DataError, Embedder, IndexedDataset, openai_templates
from torch import Tensor
from torch.nn.functional import normalize

from mvcore_duoduo.evaluation.files import Labels, plain_id, read_classes, read_labels, read_matrix, read_templates
from mvcore_duoduo.evaluation.options import ViewCountOptions


@dataclass(frozen=True)
class Labelled:
    """The objects of a source that are measured.

    Args:
        objects: their indices in the source.
        numbers: (O,) their classes.
        unlisted: objects of the source that the labels do not list.
        missing: objects of the labels that the source does not hold.
    """

    objects: tuple[int, ...]
    numbers: Tensor
    unlisted: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Classes:
    """Names of C classes.

    Args:
        categories: what the data calls them.
        words: what prompts call them.
        labels: the file that says which object is of which, or None where its category does.
    """

    categories: tuple[str, ...]
    words: tuple[str, ...]
    labels: Labels | None

    def of(self, owner: str, source: str, dataset: IndexedDataset, *, allow_missing: bool) -> Labelled:
        """The objects of a source with their classes.

        Raises:
            DataError: an object without a class, or objects of the labels that are not there.
        """
        if self.labels is None:
            return Labelled(tuple(range(len(dataset))), torch.tensor(self._by_category(owner, source, dataset)))
        number_of = dict(zip(self.labels.ids, self.labels.numbers, strict=True))
        names = [plain_id(dataset.object_name(i)) for i in range(len(dataset))]
        objects = tuple(i for i, name in enumerate(names) if name in number_of)
        missing = sorted(number_of.keys() - set(names))
        if not objects or (missing and not allow_missing):
            raise DataError(
                f"{owner}: source {source!r} lacks {len(missing)} of the {len(number_of)} objects of "
                f"{self.labels.path}, the first {missing[0]!r}; "
                + ("set allow_missing: true to measure the others" if objects else "is it the right source?")
            )
        numbers = torch.tensor([number_of[names[i]] for i in objects])
        return Labelled(objects, numbers, len(dataset) - len(objects), len(missing))

    def _by_category(self, owner: str, source: str, dataset: IndexedDataset) -> list[int]:
        places: dict[str, list[int]] = {}
        for place, category in enumerate(self.categories):
            places.setdefault(category, []).append(place)
        numbers: list[int] = []
        for i in range(len(dataset)):
            category = dataset.category(i)
            where = f"{owner}: object {dataset.object_name(i)!r} of source {source!r}"
            if category is None:
                raise DataError(f"{where} has no category; name a file of labels, or leave the source out")
            at = places.get(category, [])
            if len(at) != 1:
                what = f"at {len(at)} places" if at else "not"
                raise DataError(
                    f"{where} is of category {category!r}, which is {what} among the classes; "
                    "give classes as a mapping from each category to its word"
                )
            numbers += at
        return numbers


def classes_of(options: ViewCountOptions, sources: Mapping[str, IndexedDataset], owner: str) -> Classes:
    """The classes that the options name, or that labels or the sources' categories are.

    Raises:
        DataError: a file cannot be read, or there is no class.
        ConfigError: labels and classes that contradict each other.
    """
    labels = None if options.labels is None else read_labels(options.labels)
    chosen = options.classes
    if isinstance(chosen, str):
        chosen = tuple(read_classes(chosen))
    if isinstance(chosen, dict):
        if labels is not None:
            raise ConfigError(f"{owner}: labels go by number, so classes must be a file or a list, not a mapping")
        categories, words = tuple(chosen), tuple(chosen.values())
    elif chosen is not None:
        categories = words = tuple(chosen)
    elif labels is not None:
        categories = words = _words_of(labels, owner)
    else:
        seen = {dataset.category(i) for dataset in sources.values() for i in range(len(dataset))}
        categories = words = tuple(sorted(category for category in seen if category is not None))
    if not categories:
        raise DataError(f"{owner}: no object of {', '.join(sources)} has a category, so there is no class to choose")
    if labels is not None:
        _check_words(labels, words, owner)
    if options.prettify_underscores:
        words = tuple(word.replace("_", " ") for word in words)
    return Classes(categories, words, labels)


def class_vectors(model: Embedder, options: ViewCountOptions, classes: Classes, width: int, owner: str) -> Tensor:
    """(C, D) float32 vectors of the classes.

    Raises:
        ConfigError: the model encodes no text and no matrix is given.
        DataError: a matrix of other classes or another width.
    """
    if options.class_matrix is not None:
        matrix = torch.from_numpy(read_matrix(options.class_matrix))
        if matrix.shape != (len(classes.words), width):
            raise DataError(
                f"{owner}: {options.class_matrix} is {tuple(matrix.shape)}, but there are {len(classes.words)} classes "
                f"and the model's vectors have {width} numbers"
            )
        return matrix
    if not model.has_text:
        raise ConfigError(f"{owner}: this model encodes no text; name a class_matrix, or leave the evaluator out")
    prompts: Sequence[str | Callable[[str], str]]
    if options.templates == "openai":
        prompts = openai_templates()
    else:
        prompts = read_templates(options.templates) if isinstance(options.templates, str) else options.templates
    return build_classes(
        lambda texts: model.encode_texts(texts, options.texts_per_batch),
        classes.words,
        prompts,
        normalised=options.classifier == "normalised",
        classes_per_batch=max(1, options.texts_per_batch // len(prompts)),
    )


def build_classes(
    encode: Callable[[list[str]], Tensor],
    words: Sequence[str],
    prompts: Sequence[str | Callable[[str], str]],
    *,
    normalised: bool,
    classes_per_batch: int = 16,
) -> Tensor:
    """(C, D) mean vector of each class's prompts.

    Args:
        encode: (T,) texts to (T, D) vectors of any length.
        words: C class words.
        prompts: texts with `{}` for the word, or functions of it.
        normalised: mean of unit vectors, at unit length again; else the mean of the vectors as they are.
        classes_per_batch: classes whose prompts are encoded at once.
    """
    rows: list[Tensor] = []
    for start in range(0, len(words), classes_per_batch):
        some = words[start : start + classes_per_batch]
        texts = [p.format(word) if isinstance(p, str) else p(word) for word in some for p in prompts]
        vectors = encode(texts).float()
        vectors = (normalize(vectors, dim=-1) if normalised else vectors).view(len(some), len(prompts), -1).mean(dim=1)
        rows.append(normalize(vectors, dim=-1) if normalised else vectors)
    return torch.cat(rows)


def _words_of(labels: Labels, owner: str) -> tuple[str, ...]:
    numbers = sorted(labels.words)
    if numbers != list(range(len(numbers))):
        raise ConfigError(
            f"{owner}: {labels.path} holds objects of {len(numbers)} of at least {numbers[-1] + 1} classes; name the "
            "list of all classes with classes"
        )
    return tuple(labels.words[number] for number in numbers)


def _check_words(labels: Labels, words: Sequence[str], owner: str) -> None:
    """A list in another order would silently label every object wrongly."""
    for number, word in sorted(labels.words.items()):
        if number >= len(words):
            raise ConfigError(f"{owner}: {labels.path} has class {number}, but only {len(words)} classes are named")
        if _bare(words[number]) != _bare(word):
            raise ConfigError(
                f"{owner}: class {number} is {word!r} in {labels.path}, but {words[number]!r} among the classes"
            )


def _bare(word: str) -> str:
    return " ".join(word.replace("_", " ").lower().split())
