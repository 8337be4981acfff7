"""Pydantic's findings as lines that name the key as the user wrote it: `losses[ovt.vc].marign: unknown key, ...`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, to_json

from mvcore.errors import ConfigError
from mvcore.key_path import show_path
from mvcore.suggest import did_you_mean, listed

M = TypeVar("M", bound=BaseModel)
Keys = Sequence[str | int]


Written = Callable[[Keys], str]
"""Tells where a key was written, as `run.yaml:9`; nothing where that is not known."""


def nowhere(keys: Keys) -> str:
    """Of values that no file holds."""
    return ""


@dataclass(frozen=True)
class Place:
    """Where values stand, for the text of errors.

    Args:
        name: what stands before each key, as `losses[ovt.vc]`; nothing for a whole configuration.
        written: tells where a key below was written.
        beside: other keys that may stand there, to be suggested with the model's own.
    """

    name: str = ""
    written: Written = nowhere
    beside: Collection[str] = ()

    def line(self, keys: Keys, text: str) -> str:
        """`run.yaml:9: losses[ovt.vc].marign: ` and the text."""
        shown = show_path((self.name, *keys) if self.name else keys)
        return ": ".join(part for part in (self.written(keys), shown, text) if part)


def validate(model: type[M], values: Mapping[str, Any], where: str | Place) -> M:
    """The values as an instance of `model`: strict, but with JSON's types (a list for a tuple, a string for a path).

    Args:
        where: where they stand, or just what stands before each key in an error.

    Raises:
        ConfigError: all findings in one line, joined by `; `.
    """
    place = where if isinstance(where, Place) else Place(where)
    unknown = _unknown_keys(model, values)
    if unknown:
        known = [*_fields(model), *place.beside]
        raise ConfigError("; ".join(place.line([key], _unknown(key, known)) for key in unknown))
    try:
        text = to_json(dict(values), inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as exc:
        raise ConfigError(place.line([], f"a value is not plain data: {exc}")) from None
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as exc:
        raise ConfigError("; ".join(describe(exc, model, values, place))) from None


def refuse_all(values: Mapping[str, Any], owner: str, where: str | Place) -> None:
    """For a part without options.

    Raises:
        ConfigError: there are values.
    """
    place = where if isinstance(where, Place) else Place(where)
    if values:
        lines = (
            place.line([key], f"unknown key{did_you_mean(key, place.beside)}, {owner} takes no options")
            for key in values
        )
        raise ConfigError("; ".join(lines))


def describe(error: ValidationError, model: type[BaseModel], values: Any, place: Place) -> list[str]:
    """One line for each key that a validation found fault with, in pydantic's order."""
    found: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for finding in error.errors(include_url=False):
        found.setdefault(_written(finding, values), []).append(finding)
    return [_line(keys, findings, model, place) for keys, findings in found.items()]


def _written(finding: ErrorDetails, values: Any) -> tuple[str | int, ...]:
    """The finding's keys as the user wrote them: pydantic adds the names of a union's members, as `int`."""
    keys: list[str | int] = []
    for key in finding["loc"]:
        if isinstance(values, Mapping) and key in (named := {str(name): value for name, value in values.items()}):
            keys.append(key)
            values = named[str(key)]
        elif isinstance(values, (list, tuple)) and isinstance(key, int) and key < len(values):
            keys.append(key)
            values = values[key]
        elif finding["type"] == "missing" and key == finding["loc"][-1]:
            keys.append(key)
    return tuple(keys)


def _line(keys: Keys, findings: Sequence[ErrorDetails], model: type[BaseModel], place: Place) -> str:
    first = findings[0]
    if first["type"] == "extra_forbidden":
        known = [*_fields(_model_at(model, keys[:-1])), *(place.beside if len(keys) == 1 else ())]
        return place.line(keys, _unknown(str(keys[-1]), known))
    if first["type"] == "missing":
        return place.line(keys, "is missing")
    texts = (finding["msg"].removeprefix("Value error, ") for finding in findings)
    first_text, *others = dict.fromkeys(text[:1].lower() + text[1:] for text in texts)
    text = " or ".join([first_text, *(text.removeprefix("input should be ") for text in others)])
    # Who wrote a check's text said what the value must be; a whole mapping would bury it.
    return place.line(keys, text if isinstance(first["input"], Mapping) else f"{text}, got {first['input']!r}")


def _unknown(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = did_you_mean(key, names)
    return f"unknown key{near}" if near or not names else f"unknown key (known: {listed(names)})"


def _unknown_keys(model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Keys that a model without a rule for them would silently drop."""
    if model.model_config.get("extra") is not None:
        return []
    return [str(key) for key in values if key not in _fields(model)]


def _fields(model: type[BaseModel] | None) -> dict[str, Any]:
    """The annotations of a model's fields by the names that users write."""
    if model is None:
        return {}
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _model_at(model: type[BaseModel], path: Keys) -> type[BaseModel] | None:
    """The nested model at a path of keys, as far as plain annotations tell."""
    current: Any = model
    for key in path:
        found = _first_model(current)
        if get_origin(current) is not dict and not isinstance(key, int) and found is not None:
            current = _fields(found).get(key)
        elif get_args(current):
            current = get_args(current)[1 if get_origin(current) is dict else 0]
    return _first_model(current)


def _first_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_first_model(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)
