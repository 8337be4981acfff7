"""What a loss that is added to a run brings: its options, and adapters, trainers and a source that the run lacks.

Nothing is taken that the run has already, and nothing that would replace a feature that others read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mvcore import build
from mvcore.config import LossPart, Part, SourcePart, gathered
from mvcore.config_layers import Layers, read_yaml, section_of, shown_value
from mvcore.errors import MvcoreError
from mvcore.key_path import show_path
from mvcore.plugins import Registered, Registry, recipe_path
from mvcore.specs import BATCH_FIELDS, STATE
from mvcore.suggest import listed

_OF_THE_STORE = ("path", "split", "image_size", "cache", "licences", "limit_objects")
"""Keys of a source that say where its data lies and how large its images are: a source that is taken has the run's."""

_OF_THE_SAMPLING = frozenset(SourcePart.model_fields) - {"id", "args"}
_KINDS = {"encoder": "encoder", "adapters": "encoder", "trainers": "trainer", "losses": "loss", "data": "dataset"}


class PullIn:
    """Adds to a run what an added loss needs and the run lacks.

    Its options, adapters and trainers come from its plugin's recipe, as that has them; without one, the parts come from
    the plugins' specs, where only one part supplies the need. A source comes from the recipe too, but lies on the run's
    own data.

    Args:
        loss: the loss.
        name: the loss's name in the run.
        style: name of the recipe that the run itself follows; a recipe of that name is preferred, as `demo`.
        taken: sources that losses before it have brought, which are read for want of another only.

    Attributes:
        notes: what was taken, from where, and why.
        follows: by source that was taken, the run's own source on whose data it lies.
        readers: the loss and the trainers that it brought.
    """

    def __init__(
        self,
        layers: Layers,
        loss: Registered,
        name: str,
        registry: Registry,
        style: str = "",
        taken: Collection[str] = (),
    ) -> None:
        self.taken = taken
        self.layers = layers
        self.loss = loss
        self.readers = [name]
        self.registry = registry
        self.notes: list[str] = []
        self.follows: dict[str, str] = {}
        self.recipe_id, self.recipe = self._best_recipe(style)

    def take_parts(self) -> None:
        """Takes the adapters, trainers and source that are needed; the loss must be in the run by now."""
        needs = self._keys("needs", "losses", self.loss.id, {})
        self._take_source(needs | self._take_suppliers(needs))

    def _best_recipe(self, style: str) -> tuple[str, dict[str, Any]]:
        """Of the plugin's recipes one that has the loss, then of the run's style, the default, of the loss's name."""
        ranked: list[tuple[tuple[bool, ...], str, dict[str, Any]]] = []
        for entry in self.registry.specs("recipe").values():
            if entry.plugin == self.loss.plugin:
                values = read_yaml(recipe_path(entry))[0]
                has = self.loss.id in (_id(name, entry) for name, entry in section_of(values, "losses").items())
                kind = entry.spec.name.rpartition("-")[2]
                named = entry.spec.name.startswith(self.loss.spec.name)
                ranked.append(((not has, kind != style, not entry.spec.default, not named), entry.id, values))
        return min(ranked, key=lambda item: item[0])[1:] if ranked else ("", {})

    def take_options(self) -> None:
        """The loss as the recipe has it, but for its weight: the options belong to the recipe's other choices."""
        for name, entry in section_of(self.recipe, "losses").items():
            if _id(name, entry) == self.loss.id and (own := gathered(dict(entry or {}), LossPart)["args"]):
                self.layers.merge({"losses": {self.readers[0]: own}}, f"recipe {self.recipe_id}, for {self.loss.id}")
                options = ", ".join(f"{option}: {shown_value(value)}" for option, value in own.items())
                self.notes.append(f"loss {self.readers[0]} as in recipe {self.recipe_id}: {options}")

    def _keys(self, what: str, section: str, name: str, entry: Any) -> frozenset[str]:
        return keys_of(self.registry, what, section, name, entry)

    def _given(self) -> frozenset[str]:
        """The features and states that the run's own parts provide."""
        found: set[str] = set()
        encoder = section_of(self.layers.values, "encoder")
        parts = [("encoder", "encoder", encoder)] if encoder else []
        parts += [(s, n, e) for s in ("adapters", "trainers") for n, e in section_of(self.layers.values, s).items()]
        for section, name, entry in parts:
            if _id(name, entry) in self.registry.specs(_KINDS[section]):
                found |= self._keys("provides", section, name, entry)
        return frozenset(found)

    # --- adapters and trainers ----------------------------------------------------------------------------------------

    def _take_suppliers(self, needs: frozenset[str]) -> frozenset[str]:
        """Goes back from what the loss needs through what its suppliers need; returns the suppliers' needs."""
        given, chosen = self._given(), dict[tuple[str, str], tuple[dict[str, Any], str, set[str]]]()
        missing, read = set(needs - BATCH_FIELDS - given), frozenset[str]()
        for section in ("adapters", "trainers"):
            self._tell_of_replacements(section, needs & given)
        while missing:
            key = min(missing)
            missing.discard(key)
            found = self._supplier("trainers" if key.startswith(STATE) else "adapters", key, given)
            if found is None:
                continue  # for the planner to refuse, which names those who could give it
            section, name, entry, origin = found
            provides, own = self._keys("provides", section, name, entry), self._keys("needs", section, name, entry)
            chosen[section, name] = (entry, origin, {key} | (provides & missing))
            given, read = given | provides, read | own
            missing = (missing | (own - BATCH_FIELDS)) - given
        order = [(section, name) for section in ("adapters", "trainers") for name in section_of(self.recipe, section)]
        last_first = [*reversed(chosen)]  # those of no recipe stand before what asked for them
        for place in sorted(last_first, key=lambda place: order.index(place) if place in order else len(order)):
            (section, name), (entry, origin, keys) = place, chosen[place]
            self.layers.merge({section: {name: entry}}, f"{origin or 'its spec'}, for {self.loss.id}")
            if section == "trainers":
                self.readers.append(name)
            why = f"{self.loss.id} needs {listed(keys)}"
            verb = "publishes" if section == "trainers" else "gives"
            self.notes.append(
                f"{section[:-1]} {name} from {origin}: {why}"
                if origin
                else f"{section[:-1]} {name}: {why}, which no other {section[:-1]} {verb}"
            )
        return read

    def _supplier(self, section: str, key: str, given: frozenset[str]) -> tuple[str, str, dict[str, Any], str] | None:
        for name, entry in section_of(self.recipe, section).items():
            provides = self._keys("provides", section, name, entry)
            if key in provides and not provides & given and name not in section_of(self.layers.values, section):
                own = {option: value for option, value in (entry or {}).items() if option != "on"}
                return section, name, own, f"recipe {self.recipe_id}"
        entries = self.registry.specs(_KINDS[section])
        givers = [id for id, entry in entries.items() if key in entry.spec.provides and _can_be_added(entry)]
        if len(givers) == 1 and not self._keys("provides", section, givers[0], {}) & given:
            return section, givers[0], {}, ""
        return None

    def _tell_of_replacements(self, section: str, keys: frozenset[str]) -> None:
        if self.loss.id not in (_id(name, entry) for name, entry in section_of(self.recipe, "losses").items()):
            return
        present = {_id(name, entry) for name, entry in section_of(self.layers.values, section).items()}
        for name, entry in section_of(self.recipe, section).items():
            replaced = self._keys("provides", section, name, entry) & keys
            if replaced and _id(name, entry) not in present:
                setting = f"--set '{show_path((section, name))}={{}}'"
                self.notes.append(
                    f"{section[:-1]} {name} of recipe {self.recipe_id} is not taken: the run has {listed(replaced)}, "
                    f"which it would replace for every loss (to have it: {setting})"
                )

    # --- a source -----------------------------------------------------------------------------------------------------

    def _take_source(self, needs: frozenset[str]) -> None:
        """Sees to a source that draws as the loss needs and loads what it needs."""
        sources = {name: e for name, e in section_of(self.layers.values, "data").items() if isinstance(e, dict)}
        drawing = {name: entry for name, entry in sources.items() if self._draws(entry)}
        own = {name: entry for name, entry in drawing.items() if name not in self.taken}
        fitting = [name for name, entry in own.items() if not self._off(entry, needs)]
        if not fitting:
            fitting = [name for name, entry in drawing.items() if not self._off(entry, needs)][:1]
        if drawing and not fitting:
            fitting = [next(iter(own or drawing))]
            self._switch_on(fitting[0], self._off(drawing[fitting[0]], needs))
        for name in fitting:
            self._let_read(name, drawing[name])
        if sources and not drawing:
            self._add_source(sources, needs)

    def _draws(self, entry: Mapping[str, Any]) -> bool:
        return self.loss.spec.sampling in ("any", entry.get("sampling", "objects"))

    def _off(self, entry: Mapping[str, Any], needs: frozenset[str]) -> dict[str, Any]:
        """The needed fields that the source's dataset would load if it were told to, and what tells it."""
        registered = self.registry.specs("dataset").get(entry.get("id", ""))
        model = build.options_model(registered) if registered is not None else None
        fields = model.model_fields if model is not None else {}
        off: dict[str, Any] = {}
        for name, info in sorted(fields.items()):
            # A switch is on or off, or says more than on: it is off where nothing is said.
            if info.default is False and not entry.get(name):
                off[name] = True
            elif entry.get(name) == "none" and info.default != "none":
                off[name] = info.default
        return {name: value for name, value in off.items() if name in needs & BATCH_FIELDS}

    def _switch_on(self, name: str, fields: Mapping[str, Any]) -> None:
        for field, value in fields.items():
            self.layers.merge({"data": {name: {field: value}}}, f"for {self.loss.id}")
            self.notes.append(f"source {name} loads {field}: {self.loss.id} needs it")

    def _let_read(self, name: str, entry: Mapping[str, Any]) -> None:
        readers = entry.get("readers")
        if isinstance(readers, list):
            more = list(dict.fromkeys([*readers, *self.readers]))
            self.layers.merge({"data": {name: {"readers": more}}}, f"for {self.loss.id}")

    def _add_source(self, sources: Mapping[str, dict[str, Any]], needs: frozenset[str]) -> None:
        """A source that draws as the loss needs: the recipe's on the run's data, or the run's own drawn otherwise."""
        sampling = self.loss.spec.sampling
        templates = {name: e for name, e in section_of(self.recipe, "data").items() if e and self._draws(e)}
        ids = {entry.get("id") for entry in sources.values()}
        template = next((name for name, entry in templates.items() if entry.get("id") in ids), None)
        if template is None:
            base = next(iter(sources))
            entry = {key: value for key, value in sources[base].items() if key not in _OF_THE_SAMPLING}
            entry, name, origin = {**entry, "sampling": sampling}, sampling, f"source {base}, drawn as {sampling}"
        else:
            base = next(name for name, entry in sources.items() if entry.get("id") == templates[template].get("id"))
            entry, name = dict(templates[template]), template
            origin = f"recipe {self.recipe_id} on the data of source {base}"
        name = name if name not in sources else f"{self.loss.plugin}.{name}"
        entry = {key: value for key, value in entry.items() if key not in _OF_THE_STORE}
        entry |= self._off(entry, needs) | {"readers": self.readers}
        self.layers.merge({"data": {name: entry}}, f"{origin}, for {self.loss.id}")
        self.follows[name] = base
        self.notes.append(f"source {name} from {origin}: {self.loss.id} needs sampling: {sampling}")


def keys_of(registry: Registry, what: str, section: str, name: str, entry: Any) -> frozenset[str]:
    """What a part `needs` or `provides`, as its options say, or its spec where they are not in order."""
    registered = registry.specs(_KINDS[section]).get(_id(name, entry))
    if registered is None:
        return frozenset()  # for the planner to refuse
    ask = build.needs_of if what == "needs" else build.provides_of
    try:
        args = gathered(dict(entry or {}), Part)["args"] if section in ("encoder", "adapters") else {}
        return frozenset(ask(registered, build.options(registered, args, name)))
    except MvcoreError:
        return frozenset(getattr(registered.spec, what, ()))


def follow(layers: Layers, follows: Mapping[str, str]) -> None:
    """Gives sources that were taken the data of the run's own, after all else was settled.

    Args:
        follows: by source, the one whose data it has.
    """
    for name, base in follows.items():
        taken, own = section_of(layers.values, "data").get(name), section_of(layers.values, "data", base)
        for key in _OF_THE_STORE:
            if isinstance(taken, dict) and key in own and key not in taken:
                layers.merge({"data": {name: {key: own[key]}}}, f"as source {base}")


def _id(name: str, entry: Any) -> str:
    return str(entry.get("id", name)) if isinstance(entry, Mapping) else name


def _can_be_added(entry: Registered) -> bool:
    return getattr(entry.spec, "kind", "adapter") == "adapter"
