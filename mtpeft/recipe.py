"""Reading recipes and flags: plain values under dotted keys, later ones over earlier ones, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpeft.addresses import DataAddress, MethodAddress, TaskTerm, absolute, free_label
from mtpeft.errors import UsageError, did_you_mean
from mtpeft.names import brief
from mtpeft.settings import from_toml
from mtpeft.toml_text import read_toml

FLAGS = {
    "--schedule": "schedule.name",
    "--backbone": "backbone",
    "--weights": "weights",
    "--steps": "schedule.steps",
    "--epochs": "schedule.epochs",
    "--seed": "seed",
    "--out": "output.dir",
    "--balance": "balance.name",
    "--device": "device",
}
ALIASES = {"optimizer.accumulate": "schedule.accumulate", "output.eval_every": "schedule.eval_every"}
"""Two words for one thing: what a schedule streams is set in its table."""
REPLACES = {
    "schedule.steps": "schedule.epochs",
    "schedule.epochs": "schedule.steps",
    "schedule.name": "schedule.stages",
}
"""What a flag takes the place of in a recipe, because it excludes it."""


_DEEPEST = 64
"""Names in a dotted key."""
RANDOM_WEIGHTS = "random"
"""Instead of a file of weights: the architecture as the seed draws it, to know what pre-training is worth."""
Place = tuple[str, ...]
"""Where a value stands: the names of its dotted key."""


class Draft:
    """A configuration before it is checked: ``tree`` of plain values, ``origins`` of each dotted key.

    Methods stand in the tree as a table from label to settings; the label is the name, or ``name-2`` for a second one.
    """

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {"methods": {}, "tasks": {}}
        self.origins: dict[str, str] = {}

    def read(self, path: Path) -> None:
        """Take a recipe; its paths are relative to its folder."""
        table = read_toml(path)
        methods = table.pop("methods", [])
        if not isinstance(methods, list) or not all(isinstance(item, dict) for item in methods):
            raise UsageError(
                f"methods in {path} is not a list of tables", hint='write [[methods]], below it name = "lora"'
            )
        for item in methods:
            name = item.pop("name", None)
            if not isinstance(name, str):
                raise UsageError(f"a method in {path} has no name", hint='write name = "lora" below [[methods]]')
            label = self._add_method(name, str(path))
            self.assign(("methods", label), item, str(path), path.parent)
        for name, value in table.items():
            self.assign((name,), value, str(path), path.parent)

    def flag(self, flag: str, value: Any) -> None:
        """Take a flag; its paths are relative to the current directory."""
        if flag == "--tasks":
            self._choose_tasks(value)
        elif flag == "--method":
            self._choose_methods(value)
        else:
            self.assign(tuple(FLAGS[flag].split(".")), str(value) if isinstance(value, Path) else value, flag)

    def set(self, item: str, *, methods: Iterable[str] = ()) -> None:
        """Take ``KEY=VALUE``; the value is TOML, or else a text.

        Args:
            methods: what may be given settings beside the methods that are there.
        """
        key, equals, text = (piece.strip() for piece in item.partition("="))
        names = tuple(key.split("."))
        if not equals or "" in names or len(names) > _DEEPEST:
            raise UsageError(f'--set "{brief(item)}" is not KEY=VALUE', hint="e.g. --set optimizer.lr=3e-4")
        if names[0] in ("methods", "tasks"):
            self._expect(names, item, frozenset(methods if names[0] == "methods" else ()))
        self.assign(names, from_toml(text), "--set")

    def _expect(self, names: Place, item: str, others: frozenset[str]) -> None:
        """Refuse a setting of a method or task that is not there; a method among ``others`` is added."""
        known = self.tree[names[0]]
        if len(names) < 3:
            raise UsageError(f'--set "{brief(item)}" names no setting', hint=f"{names[0]}.NAME.SETTING=VALUE")
        if names[1] not in {*known, *others}:
            hint = did_you_mean(names[1], {*known, *others})
            message = f'there is no "{brief(names[1])}" among the {names[0]} (--set {brief(item)})'
            raise UsageError(message, hint=hint)
        if names[1] not in known:
            self._add_method(names[1], "--set")

    def assign(self, path: Place, value: Any, origin: str, base: Path | None = None) -> None:
        """Put a value, or each value of a table, where ``path`` says."""
        if isinstance(value, dict):
            self._table(path, origin)
            for name, item in value.items():
                self.assign((*path, name), item, origin, base)
            return
        key = ".".join(path)
        path = tuple(ALIASES[key].split(".")) if key in ALIASES else path
        table = self._table(path[:-1], origin)
        if isinstance(table.get(path[-1]), dict):
            hint = f"set what is in it: {brief(key)}.SETTING"
            raise UsageError(f"{brief(key)} (from {origin}) is a table, not a value", hint=hint)
        table[path[-1]] = _resolved(path, value, base or Path.cwd())
        self.origins[".".join(path)] = origin
        self._replace(REPLACES.get(key, ""), origin)

    def _replace(self, key: str, origin: str) -> None:
        """Drop what a flag takes the place of, unless it is a flag too."""
        if origin.startswith("--") and not self.origins.get(key, "--").startswith("--"):
            self._forget(tuple(key.split(".")))

    def _table(self, path: Place, origin: str) -> dict[str, Any]:
        table = self.tree
        for depth, name in enumerate(path, 1):
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                key = brief(".".join(path[:depth]))
                raise UsageError(f"{key} (from {origin}) is a value, not a table", hint=f"set it whole: {key} = ...")
        return table

    def _forget(self, path: Place) -> None:
        self._table(path[:-1], "").pop(path[-1], None)
        self.origins = {key: origin for key, origin in self.origins.items() if not _within(key, path)}

    def _add_method(self, name: str, origin: str) -> str:
        label = free_label(name, self.tree["methods"])
        self.assign(("methods", label, "name"), name, origin)
        return label

    def _choose_methods(self, text: str) -> None:
        """``lora@shared+adaptformer@task``: these methods, each with the settings that the recipe gives it.

        The recipe's second LoRA is the second of ``lora+lora``, and by its label, ``lora-2``, it can stand alone.
        """
        before, origins = self.tree["methods"], dict(self.origins)
        self._forget(("methods",))
        self.tree["methods"] = {}
        taken: set[str] = set()
        for term in MethodAddress.parse(text, "--method").terms:
            label = self._add_method(before.get(term.name, {}).get("name", term.name), "--method")
            own = label if term.name in taken else term.name
            if own in before:
                taken.add(own)
                self.tree["methods"][label] = dict(before[own])
                kept = {key: origin for key, origin in origins.items() if _within(key, ("methods", own))}
                self.origins |= {f"methods.{label}{k.removeprefix(f'methods.{own}')}": o for k, o in kept.items()}
            if term.scope:
                self.assign(("methods", label, "scope"), term.scope, "--method")

    def _choose_tasks(self, text: str) -> None:
        """``pets,cells=det@voc:data/bccd``: these tasks; a bare name is the recipe's, or embedded data of that type."""
        before, chosen = dict(self.tree["tasks"]), {}
        for term in map(TaskTerm.parse, text.split(",")):
            if term is None:
                message = f'--tasks "{brief(text)}" is not NAME or NAME=TYPE@READER:PATH, comma-separated'
                raise UsageError(message, hint="e.g. --tasks cls,pets=cls@folder:data/pets")
            if term.name in chosen:
                other = replace(term, name=f"{term.name}-2", type=term.type or term.name)
                raise UsageError(f'--tasks names "{term.name}" twice', hint=f'give one another name: "{other}"')
            if term.type or term.name not in before:
                self._one_task(term)
            chosen[term.name] = self.tree["tasks"][term.name]
        self.tree["tasks"] = chosen

    def _one_task(self, term: TaskTerm) -> None:
        self._forget(("tasks", term.name))
        self.assign(("tasks", term.name, "type"), term.type or term.name, "--tasks")
        if term.data:
            self.assign(("tasks", term.name, "data"), term.data, "--tasks")


def _within(key: str, path: Place) -> bool:
    return key == ".".join(path) or key.startswith(".".join(path) + ".")


def _resolved(path: Place, value: Any, base: Path) -> Any:
    """Paths of data, weights and cache, made absolute, so that a run's ``config.toml`` means the same from anywhere."""
    if not isinstance(value, str) or not value:
        return value
    if path == ("cache",):
        return absolute(value, base)
    if path == ("weights",):
        return value if value == RANDOM_WEIGHTS else absolute(value, base)
    if len(path) == 3 and path[0] == "tasks" and path[2] == "data":
        return str(DataAddress.parse(value, ".".join(path)).resolved(base))
    return value
