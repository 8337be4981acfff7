"""Pydantic's findings as lines that name the key as the user wrote it: `losses[ovt.vc].marign: unknown key, ...`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, to_json

from mvcore.errors import ConfigError
from mvcore.suggest import did_you_mean, listed

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """The values as an instance of `model`: strict, but with JSON's types (a list for a tuple, a string for a path).

    Args:
        where: what stands before each key in an error, as `losses[ovt.vc]`.

    Raises:
        ConfigError: all findings in one line, joined by `; `.
    """
    unknown = _unknown_keys(model, values)
    if unknown:
        known = _names(model)
        raise ConfigError("; ".join(f"{_join(where, key)}: {_unknown(key, known)}" for key in unknown))
    try:
        text = to_json(dict(values), inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as exc:
        raise ConfigError(f"{where}: a value is not plain data: {exc}") from None
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as exc:
        raise ConfigError("; ".join(describe(exc, model, where))) from None


def describe(error: ValidationError, model: type[BaseModel], where: str) -> list[str]:
    """One line for each finding of a validation, in pydantic's order."""
    return [_line(finding, model, where) for finding in error.errors(include_url=False)]


def _line(finding: ErrorDetails, model: type[BaseModel], where: str) -> str:
    *parents, key = finding["loc"] or ("",)
    path = _join(where, *finding["loc"])
    if finding["type"] == "extra_forbidden":
        return f"{path}: {_unknown(str(key), _names(_model_at(model, parents)))}"
    if finding["type"] == "missing":
        return f"{path}: is missing"
    message = finding["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if isinstance(finding["input"], Mapping):
        return f"{path}: {message}"
    return f"{path}: {message}, got {finding['input']!r}"


def _unknown(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = did_you_mean(key, names)
    return f"unknown key{near}" if near else f"unknown key (known: {listed(names)})"


def _unknown_keys(model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Keys that a model without a rule for them would silently drop."""
    if model.model_config.get("extra") is not None:
        return []
    return [str(key) for key in values if key not in _names(model)]


def _names(model: type[BaseModel] | None) -> list[str]:
    return [] if model is None else [info.alias or name for name, info in model.model_fields.items()]


def _model_at(model: type[BaseModel], path: Iterable[int | str]) -> type[BaseModel] | None:
    """The nested model at a path of keys, as far as plain annotations tell."""
    current: Any = model
    for key in path:
        found = _first_model(current)
        if found is not None and key in found.model_fields:
            current = found.model_fields[str(key)].annotation
    return _first_model(current)


def _first_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_first_model(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _join(where: str, *path: int | str) -> str:
    text = where
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text
