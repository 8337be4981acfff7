"""From a spec to a part: resolves lazy references, validates options, constructs, and checks the part's contract.

Nothing here imports torch before a part is made.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from operator import index
from typing import TYPE_CHECKING, Any

from mvcore.errors import ConfigError, MvcoreError, PluginError
from mvcore.plugins import Registered, load_plugins
from mvcore.suggest import did_you_mean, listed

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mvcore.specs import Axis
    from mvcore.validation import Place


def resolve(reference: Any, owner: str = "") -> Any:
    """What `"package.module:Name"` names; anything but a string is returned as it is.

    Args:
        owner: the part whose spec holds the reference, for the error.

    Raises:
        PluginError: the module cannot be imported or has no such attribute.
    """
    if not isinstance(reference, str):
        return reference
    prefix = f"{owner}: " if owner else ""
    module_name, _, attribute = reference.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except MvcoreError:
        raise
    except (Exception, SystemExit) as exc:
        text = f"{prefix}cannot import {module_name!r} of {reference!r}: {type(exc).__name__}: {exc}"
        raise PluginError(text) from exc
    for name in attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            near = did_you_mean(name, dir(value))
            raise PluginError(f"{prefix}{module_name!r} has no {name!r} (of {reference!r}){near}") from None
    return value


def options_model(registered: Registered) -> type[BaseModel] | None:
    """The pydantic model of a part's options; None where it has none.

    Raises:
        PluginError: the spec's `config` names no pydantic model.
    """
    if registered.spec.config is None:
        return None
    from pydantic import BaseModel

    model = resolve(registered.spec.config, registered.id)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(f"{registered.id}: config {registered.spec.config!r} is not a pydantic model")
    return model


def options(registered: Registered, args: Mapping[str, Any], where: str | Place) -> BaseModel | None:
    """A part's validated options; None where it takes none.

    Args:
        args: what the user wrote.
        where: where it stands, as `losses[ovt.vc]`; begins each error.

    Raises:
        ConfigError: unknown keys or wrong values, all of them in one line.
        PluginError: the options model cannot be loaded.
    """
    from mvcore.validation import refuse_all, validate

    model = options_model(registered)
    if model is None:
        refuse_all(args, registered.id, where)
        return None
    return validate(model, args, where)


def needs_of(registered: Registered, chosen: BaseModel | None) -> frozenset[str]:
    """The keys that a part reads: `needs()` of its options where they have it, else its spec's."""
    return frozenset(_asked("needs", registered, chosen))


def provides_of(registered: Registered, chosen: BaseModel | None) -> frozenset[str]:
    """The keys that a part gives: `provides()` of its options where they have it, else its spec's."""
    return frozenset(_asked("provides", registered, chosen))


def axes_of(registered: Registered, chosen: BaseModel | None) -> dict[str, Axis]:
    """What the rows of a part's own keys stand for: an encoder's `axes`, a trainer's `provides`."""
    declared = {**getattr(registered.spec, "axes", {})}
    given = _asked("provides", registered, chosen)
    return {**declared, **given} if isinstance(given, Mapping) else declared


def wanted_size_of(registered: Registered, chosen: BaseModel | None) -> int | None:
    """The side of the images that a backbone wants: `wanted_size()` of its options; None where it is not told."""
    return _answered("wanted_size", registered, chosen, lambda size: None if size is None else index(size))


def _asked(what: str, registered: Registered, chosen: BaseModel | None) -> Any:
    def as_keys(keys: Any) -> Any:
        if isinstance(keys, str):
            raise TypeError(f"it gives the string {keys!r} where a set of keys belongs")
        return keys if isinstance(keys, Mapping) else frozenset(keys)

    answer = _answered(what, registered, chosen, as_keys)
    return getattr(registered.spec, what, frozenset()) if answer is None else answer


def _answered(what: str, registered: Registered, chosen: BaseModel | None, read: Callable[[Any], Any]) -> Any:
    """What a method of a part's options answers; None where they have no such method."""
    method: Any = getattr(type(chosen), what, None)
    if not callable(method):
        return None
    try:
        return read(method(chosen))
    except MvcoreError:
        raise
    except (Exception, SystemExit) as exc:
        raise PluginError(f"{registered.id}: {what}() of its options failed: {type(exc).__name__}: {exc}") from exc


def make(registered: Registered, chosen: BaseModel | None) -> Any:
    """Constructs a part with its options by keyword, and checks that it keeps the contract of its kind.

    Raises:
        PluginError: it cannot be constructed or lacks what its kind must have; faults that the part itself reports as
            an MvcoreError pass through.
    """
    factory = resolve(registered.spec.factory, registered.id)
    if not callable(factory):
        raise PluginError(f"{registered.id}: factory {registered.spec.factory!r} is not callable")
    try:
        part = factory(**dict(chosen or ()))
    except (MvcoreError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as exc:
        name = getattr(factory, "__qualname__", repr(factory))
        raise PluginError(f"{registered.id}: {name}(...) failed: {type(exc).__name__}: {exc}") from exc
    check = _CHECKS.get(registered.part)
    fault = check(part, registered) if check else ""
    if fault:
        raise PluginError(f"{registered.id}: {type(part).__name__} {fault}")
    return part


def build(part: Mapping[str, Any], kind: str | None = None) -> Any:
    """A part from `{"id": "plugin.name", "args": {...}}`: what plugins use to hold other parts.

    Args:
        kind: `encoder`, `loss`, `dataset`, `trainer` or `evaluator`; needed where the id is registered as several.

    Raises:
        ConfigError: another key than `id` and `args`, or wrong options.
        PluginError: unknown id, or a part that does not keep its contract.
    """
    for key in part:
        if key not in ("id", "args"):
            raise ConfigError(f"build: unknown key {key!r}{did_you_mean(str(key), ('id', 'args'))} (known: args, id)")
    part_id = part.get("id")
    if not isinstance(part_id, str):
        raise ConfigError(f"build: id must be a text like 'ovt.lora', got {part_id!r}")
    registered = _registered(part_id, kind)
    return make(registered, options(registered, part.get("args") or {}, part_id))


def _registered(part_id: str, kind: str | None) -> Registered:
    registry = load_plugins()
    if kind is not None:
        if kind not in BUILDABLE:
            raise ConfigError(
                f"build: unknown kind {kind!r}{did_you_mean(kind, BUILDABLE)} (known: {listed(BUILDABLE)})"
            )
        return registry.spec(kind, part_id)
    found = [registered for registered in registry.all_specs(part_id) if registered.part in BUILDABLE]
    if len(found) > 1:
        kinds = listed(registered.part for registered in found)
        raise ConfigError(f"build: {part_id!r} is the id of several parts ({kinds}); say which with kind=")
    if found:
        return found[0]
    known = [name for part in BUILDABLE for name in registry.specs(part)]
    name, dot, _ = part_id.partition(".")
    if dot and any(record.name == name and record.status != "ok" for record in registry.records):
        registry.plugin(name)
    raise PluginError(f"unknown part {part_id!r}{did_you_mean(part_id, known)} (known: {listed(known)})")


# --- contracts: each check says what is wrong, or nothing ------------------------------------------------------------


def _takes(function: Any, *names: str) -> str:
    try:
        inspect.signature(function).bind(*names)
    except TypeError:
        return f"must take ({', '.join(names)})"
    except ValueError:
        return ""  # a callable without a signature, as some compiled ones
    return ""


def _lacks(part: Any, *names: str) -> str:
    missing = [name for name in names if not hasattr(part, name)]
    return f"lacks {', '.join(missing)}" if missing else ""


def _check_loss(part: Any, registered: Registered) -> str:
    from torch import nn

    if not isinstance(part, nn.Module):
        return "is no torch.nn.Module, as a loss must be"
    if type(part).forward is nn.Module.forward:
        return "defines no forward(features, batch)"
    fault = _takes(part.forward, "features", "batch")
    return f"forward {fault}" if fault else ""


def _check_encoder(part: Any, registered: Registered) -> str:
    from torch import nn

    from mvcore.parts import Adapter, Backbone

    if registered.spec.kind == "backbone":
        return "" if isinstance(part, Backbone) else "is no mvcore.api.Backbone"
    if not isinstance(part, nn.Module):
        return "is no mvcore.api.Adapter"
    own = type(part)
    attaches = getattr(own, "attach", Adapter.attach) is not Adapter.attach
    forwards = own.forward not in (nn.Module.forward, Adapter.forward)
    if not attaches and not forwards:
        return "defines neither attach(backbone) nor forward(features, batch)"
    faults = []
    if attaches and (fault := _takes(part.attach, "backbone")):
        faults.append(f"attach {fault}")
    if forwards and (fault := _takes(part.forward, "features", "batch")):
        faults.append(f"forward {fault}")
    return " and ".join(faults)


def _check_dataset(part: Any, registered: Registered) -> str:
    if hasattr(part, "load") or hasattr(part, "views_of"):
        return _lacks(part, "load", "views_of", "__len__", "provides")
    if hasattr(part, "__iter__"):
        return _lacks(part, "state_dict", "load_state_dict", "provides")
    return "is neither indexed (load, views_of, __len__) nor a stream (__iter__)"


def _check_trainer(part: Any, registered: Registered) -> str:
    from lightning.pytorch import Callback

    if not isinstance(part, Callback):
        return "is no lightning.pytorch.Callback, as a trainer must be"
    publishes, steps = registered.spec.provides, registered.spec.replaces_step
    return _lacks(part, *["state"] * bool(publishes), *["step"] * steps)


def _check_evaluator(part: Any, registered: Registered) -> str:
    if not callable(part):
        return "is not callable, as an evaluator must be"
    return _takes(part, "model", "sources", "output")


_CHECKS: Mapping[str, Callable[[Any, Registered], str]] = {
    "encoder": _check_encoder,
    "loss": _check_loss,
    "dataset": _check_dataset,
    "trainer": _check_trainer,
    "evaluator": _check_evaluator,
}
BUILDABLE = tuple(_CHECKS)
"""The kinds of part that `build` makes."""
