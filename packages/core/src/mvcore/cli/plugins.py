"""`mvcore plugins`: what is installed, what is wrong with it, and what each part takes, needs and gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvcore.cli.output import print_json, print_table
from mvcore.errors import ConfigError, PluginError
from mvcore.plugin_records import SLOW
from mvcore.plugins import PluginRecord, Registered, Registry, load_plugins
from mvcore.specs import EncoderSpec, LossSpec, RecipeSpec, Spec
from mvcore.suggest import did_you_mean, listed

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Lists the installed plugins and shows their parts.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_plugins(
    json: Json = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the traceback of each broken plugin.")
    ] = False,
) -> None:
    """Every plugin found, with its status; a broken one is a row like any other."""
    registry = load_plugins(check_strict=False)
    if json:
        print_json([_record_json(record) for record in registry.records])
    else:
        rows = [
            (
                record.name,
                _status(record),
                record.provider,
                _counts(record),
            )
            for record in registry.records
        ]
        print_table(("plugin", "status", "from", "parts"), rows)
        if verbose:
            for record in registry.troubled:
                typer.echo(f"{record.name} ({record.provider}): {record.reason}\n{record.traceback}")
    registry.check_strict()


def _status(record: PluginRecord) -> str:
    if record.reason:
        return f"{record.status}: {record.reason}"
    return f"{record.status}: slow, {record.seconds:.1f} s to load" if record.seconds >= SLOW else record.status


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="A plugin (ovt) or a part (ovt.vc).")], json: Json = False
) -> None:
    """A plugin's parts, or a part's options, needs and provides; every kind that has the id."""
    registry = load_plugins()
    found = registry.all_specs(name)
    if found:
        _show_parts([part_json(registered) for registered in found], json)
    elif registry.has(name):
        _show_plugin(registry.plugin(name), json)
    else:
        raise PluginError(_why_unknown(registry, name))


@app.command("check")
def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An installed plugin (ovt), a module, or a file (./my_loss.py).")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="ID.OPTION=VALUE", help="An option to try a part with, as mine.tar.path=x.tar."),
    ] = None,
    json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List what is in order as well.")] = False,
) -> None:
    """Tries a plugin and each of its parts on small data: shapes, gradients, orders, saving, shared state."""
    args = _args_by_id(assignments or [])
    from mvcore.testing.plugins import examine_plugin

    findings = examine_plugin(name, args=args)
    shown = [finding for finding in findings if verbose or finding.status != "ok"]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        if shown:
            rows = [
                (finding.part, finding.check, f"{finding.status}: {finding.text}".rstrip(": ")) for finding in shown
            ]
            print_table(("part", "check", "found"), rows)
        counts = Counter(finding.status for finding in findings)
        typer.echo(f"{name}: {counts['ok']} ok, {counts['skipped']} skipped, {counts['failed']} failed")
    failed = [finding for finding in findings if finding.status == "failed"]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise PluginError(f"{failed[0].line}{more}")


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The plugin's name, which begins its ids.")],
    kinds: Annotated[
        str | None, typer.Option("--kinds", metavar="A,B", help="Kinds of part to begin with, as loss,dataset; all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write; by default ./NAME.")
    ] = None,
) -> None:
    """Writes a package for a new plugin: its parts, a recipe, tests and docs, ready to be installed and changed."""
    from mvcore.new_plugin import KINDS, write_plugin

    chosen = KINDS if kinds is None else [kind.strip() for kind in kinds.split(",") if kind.strip()]
    folder = write_plugin(name, output or Path(name), chosen)
    typer.echo(f"wrote {folder}; go on with: pip install -e '{folder}[test]' && pytest {folder}")


def _args_by_id(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """`--set mine.tar.path=x.tar` as options by the part's id."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        words = key.split(".")
        if not equals or len(words) != 3:
            raise ConfigError(f"--set {text!r}: write PLUGIN.PART.OPTION=VALUE")
        try:
            found.setdefault(".".join(words[:2]), {})[words[2]] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text!r}: the value is no YAML") from None
    return found


def _why_unknown(registry: Registry, name: str) -> str:
    plugin = name.partition(".")[0]
    if not registry.has(plugin):
        return registry.explain(plugin)
    ids = {f"{record.name}.{spec.name}" for record in registry.records for spec in record.specs}
    own = listed(part_id for part_id in ids if part_id.startswith(f"{plugin}."))
    return f"unknown id {name!r}{did_you_mean(name, ids)} ({plugin} has: {own})"


def _counts(record: PluginRecord) -> str:
    counts = Counter(_kind(spec) for spec in record.specs)
    return ", ".join(f"{n} {kind if n == 1 else _plural(kind)}" for kind, n in counts.items())


def _plural(kind: str) -> str:
    return "losses" if kind == "loss" else f"{kind}s"


def _kind(spec: Spec) -> str:
    return spec.kind if isinstance(spec, EncoderSpec) else spec.part


def _record_json(record: PluginRecord) -> dict[str, Any]:
    parts: dict[str, list[str]] = {}
    for spec in record.specs:
        parts.setdefault(spec.part, []).append(f"{record.name}.{spec.name}")
    return {
        "name": record.name,
        "status": record.status,
        "reason": record.reason,
        "distribution": record.distribution,
        "version": record.version,
        "source": record.source,
        "error": record.error,
        "traceback": record.traceback,
        "seconds": round(record.seconds, 3),
        "parts": parts,
    }


def _show_plugin(record: PluginRecord, json: bool) -> None:
    if json:
        parts = [
            {"id": f"{record.name}.{spec.name}", "kind": _kind(spec), "summary": spec.summary} for spec in record.specs
        ]
        print_json({**_record_json(record), "parts": parts})
        return
    typer.echo(f"{record.name} ({record.provider}), module {record.source}")
    if record.specs:
        rows = [(f"{record.name}.{spec.name}", _kind(spec), spec.summary) for spec in record.specs]
        print_table(("id", "kind", "summary"), rows)
    else:
        typer.echo("It registers nothing.")


def part_json(registered: Registered) -> dict[str, Any]:
    """All that is known of a part, as plain values.

    Raises:
        PluginError: its options model cannot be loaded.
    """
    from mvcore.build import axes_of, needs_of, options, options_model, provides_of

    spec, model = registered.spec, options_model(registered)
    try:
        chosen = options(registered, {}, registered.id)
    except ConfigError:
        chosen = None  # an option without a default: needs and provides are those of the spec
    described: dict[str, Any] = {"id": registered.id, "kind": _kind(spec), "summary": spec.summary}
    for what in ("citation", "licence", "factory", "path"):
        if value := getattr(spec, what, ""):
            described[what] = value if isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"
    for what, keys in (("needs", needs_of), ("provides", provides_of)):
        if hasattr(spec, what):
            described[what] = sorted(keys(registered, chosen))
    if axes := axes_of(registered, chosen):
        described["axes"] = axes
    if isinstance(spec, LossSpec):
        described |= {"sampling": spec.sampling, "scope": spec.scope}
    if isinstance(spec, RecipeSpec):
        described["default"] = spec.default
    fields: Mapping[str, FieldInfo] = {} if model is None else model.model_fields
    described["options"] = [_option_json(info.alias or name, info) for name, info in fields.items()]
    return described


def _option_json(name: str, info: FieldInfo) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    option: dict[str, Any] = {"name": name, "type": _type_text(info.annotation), "required": info.is_required()}
    limits = [
        f"{sign} {getattr(limit, word)}"
        for limit in info.metadata
        for word, sign in _LIMITS.items()
        if getattr(limit, word, None) is not None
    ]
    if limits:
        option["limits"] = ", ".join(limits)
    if not info.is_required():
        option["default"] = to_jsonable_python(info.get_default(call_default_factory=True), fallback=repr)
    option["description"] = info.description or ""
    return option


_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}


def _type_text(annotation: Any) -> str:
    """A type as one writes it, without module names."""
    from types import UnionType
    from typing import Literal, Union, get_args, get_origin

    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if origin is Literal:
        return " | ".join(repr(argument) for argument in arguments)
    if origin in (Union, UnionType):
        return " | ".join(_type_text(argument) for argument in arguments)
    if origin is Annotated:
        return _type_text(arguments[0])
    name = getattr(origin or annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(_type_text(argument) for argument in arguments)}]" if arguments else name


def _show_parts(parts: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(parts)
        return
    for part in parts:
        typer.echo(f"{part['id']} ({part['kind']}): {part['summary']}")
        for key, value in part.items():
            if key not in ("id", "kind", "summary", "options"):
                typer.echo(f"  {key}: {_plain(value)}")
        rows = [
            (
                option["name"],
                f"{option['type']} {option.get('limits', '')}".strip(),
                "required" if option["required"] else repr(option["default"]),
                option["description"],
            )
            for option in part["options"]
        ]
        if rows:
            print_table(("option", "type", "default", "meaning"), rows)
        else:
            typer.echo("  no options\n")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    if isinstance(value, dict):
        return ", ".join(f"{key} ({row})" for key, row in value.items())
    return str(value)
