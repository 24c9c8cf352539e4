"""Plugins: found by entry point, loaded one by one, diagnosed by name; what they register is imported when used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module, metadata
from time import perf_counter
from types import MappingProxyType
from typing import Any

import pluggy

from mtpeft import __version__, hookspecs
from mtpeft.errors import MtpeftError, UsageError, did_you_mean
from mtpeft.names import visible, visible_lines
from mtpeft.settings import Origin, build

GROUP = "mtpeft"
CORE = metadata.EntryPoint(name="mtpeft", value="mtpeft.builtin", group=GROUP)
KINDS = {
    "methods": "method",
    "tasks": "task type",
    "readers": "reader",
    "schedules": "schedule",
    "balancers": "balancer",
    "loggers": "logger",
    "backbones": "backbone",
}
"""What plugins register, by kind, and what one of them is called in messages."""
IN_PROCESS = "registered in this process"
OBSERVERS = ("run_started", "stage_ended", "step_ended", "run_ended")


@dataclass
class Plugin:
    """One plugin, loaded or not.

    Attributes:
        distribution: the installed package that brought it, or `IN_PROCESS`.
        state: ``loaded``, ``failed`` (it raised, or is built for another API version) or ``wrong`` (it has a hook that
            there is not).
        seconds: what importing it took.
        hooks: the hooks it implements.
        error: what went wrong, empty if nothing.
        hint: what to do about it.
    """

    name: str
    distribution: str
    version: str = ""
    state: str = "loaded"
    seconds: float = 0.0
    hooks: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""

    def __str__(self) -> str:
        package = f"{self.distribution} {self.version}".strip()
        return visible(f'"{self.name}" ({package})')

    @property
    def remedy(self) -> str:
        """What to do when its code raises."""
        if self.distribution == IN_PROCESS:
            return "repair the object that was registered"
        return f"upgrade or remove {self.distribution}: pip install -U {self.distribution}"

    def fail(self, error: str, hint: str, state: str = "failed") -> None:
        self.state, self.error, self.hint = state, error, hint


@dataclass(frozen=True)
class Entry:
    """One registered thing: its id, ``package.module:Class``, and who brought it."""

    id: str
    reference: str
    plugin: str
    distribution: str
    version: str


class Manager:
    """All plugins of this process.

    Args:
        entry_points: what to load; the installed ones of the group ``mtpeft`` by default.
    """

    def __init__(self, entry_points: Iterable[metadata.EntryPoint] | None = None) -> None:
        self._pluggy = pluggy.PluginManager(GROUP)
        self._pluggy.add_hookspecs(hookspecs)
        self._registries: dict[str, Mapping[str, Entry]] = {}
        self._muted: set[str] = set()
        self._warned: set[str] = set()
        self.plugins: dict[str, Plugin] = {}
        installed = metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        for entry_point in [CORE, *sorted(installed, key=lambda e: e.name)]:
            self._load(entry_point)

    def register(self, plugin: Any, name: str) -> None:
        """Add a plugin that is at hand: a module or an object with hooks.

        Raises:
            MtpeftError: where it breaks the contract; it is not added then.
        """
        about = Plugin(name, IN_PROCESS)
        if name in self.plugins:
            raise MtpeftError(
                f"there is a plugin {self.plugins[name]} already", hint="register yours under another name"
            )
        self._add(plugin, about)
        if about.error:
            raise MtpeftError(about.error, hint=about.hint)
        self.plugins[name] = about

    def unregister(self, name: str) -> None:
        """Take a plugin out again."""
        del self.plugins[name]
        self._pluggy.unregister(name=name)
        self._registries.clear()

    def registry(self, kind: str) -> Mapping[str, Entry]:
        """What there is of a kind (a key of `KINDS`), by id; nothing of it is imported.

        Raises:
            MtpeftError: where a plugin uses an unknown hook, or two claim one id.
        """
        if kind not in self._registries:
            entries: dict[str, Entry] = {}
            for entry in self._registered(kind):
                other = entries.setdefault(entry.id, entry)
                if other is not entry:
                    raise self._clash(kind, other, entry)
            self._report()
            self._registries[kind] = MappingProxyType(dict(sorted(entries.items())))
        return self._registries[kind]

    def resolve(self, kind: str, id: str) -> Any:
        """Import what is registered under an id.

        Raises:
            UsageError: for an unknown id, with did-you-mean.
            MtpeftError: if it cannot be imported.
        """
        entries = self.registry(kind)
        if id not in entries:
            failed = any(plugin.error for plugin in self.plugins.values())
            more = " `mtpeft plugins` shows what did not load." if failed else ""
            raise UsageError(f'there is no {KINDS[kind]} "{id}"', hint=did_you_mean(id, entries) + more)
        entry = entries[id]
        module, _, attribute = entry.reference.partition(":")
        try:
            return reduce(getattr, attribute.split("."), import_module(module))
        except Exception as error:
            plugin = self.plugins[entry.plugin]
            what = f'the {KINDS[kind]} "{id}" ({entry.reference}) of plugin {plugin}'
            raise MtpeftError(f"{what} cannot be imported: {in_words(error)}", hint=plugin.remedy) from error

    def create(self, kind: str, id: str, settings: Mapping[str, Any], where: str, origin: Origin | None = None) -> Any:
        """An instance of what is registered under an id, from its settings; see `mtpeft.settings.build`."""
        return build(self.resolve(kind, id), settings, where, origin)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell all observers. One that raises is reported once and switched off; with ``MTPEFT_STRICT=1`` it raises."""
        for impl in reversed(getattr(self._pluggy.hook, hook).get_hookimpls()):
            if impl.plugin_name in self._muted:
                continue
            try:
                impl.function(*(arguments[name] for name in impl.argnames))
            except Exception as error:
                if os.environ.get("MTPEFT_STRICT") == "1":
                    raise
                self._muted.add(impl.plugin_name)
                plugin = self.plugins[impl.plugin_name]
                _say(f"plugin {plugin} raised in {hook} and is switched off: {in_words(error)}")

    def problems(self) -> list[MtpeftError]:
        """What breaks the contract, in any registry."""
        found = {}
        for kind in KINDS:
            try:
                self.registry(kind)
            except MtpeftError as error:
                found[error.message] = error
        return list(found.values())

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        package = entry_point.dist
        about = Plugin(
            entry_point.name, package.name if package else "mtpeft", package.version if package else __version__
        )
        if about.name in self.plugins:
            about.name = f"{about.name} of {about.distribution}"
        self.plugins[about.name] = about
        start = perf_counter()
        try:
            self._add(entry_point.load(), about)
        except (Exception, SystemExit) as error:
            about.fail(in_words(error), about.remedy)
        about.seconds = perf_counter() - start

    def _add(self, plugin: Any, about: Plugin) -> None:
        version = getattr(plugin, "mtpeft_api", hookspecs.API_VERSION)
        if version != hookspecs.API_VERSION:
            outdated = "mtpeft" if version > hookspecs.API_VERSION else about.distribution
            error = f"it is built for plugin API {version}, and this mtpeft has API {hookspecs.API_VERSION}"
            about.fail(error, f"upgrade {outdated}: pip install -U {outdated}")
            return
        about.hooks = tuple(sorted(self._hooks_of(plugin)))
        unknown = [hook for hook in about.hooks if hook not in _HOOKS]
        if unknown:
            error = f'plugin {about} implements an unknown hook "{unknown[0]}"'
            about.fail(error, did_you_mean(unknown[0], _HOOKS), "wrong")
            return
        self._pluggy.register(plugin, about.name)
        self._registries.clear()

    def _hooks_of(self, plugin: Any) -> Iterator[str]:
        for name in dir(plugin):
            options = self._pluggy.parse_hookimpl_opts(plugin, name)
            if options is not None:
                yield options.get("specname") or name

    def _registered(self, kind: str) -> Iterator[Entry]:
        hook = f"register_{kind}"
        for impl in getattr(self._pluggy.hook, hook).get_hookimpls():
            about = self.plugins[impl.plugin_name]
            try:
                references = dict(impl.function())
            except Exception as error:
                about.fail(f"{hook}: {in_words(error)}", about.remedy)
                continue
            for id, reference in references.items():
                yield Entry(id, reference, about.name, about.distribution, about.version)

    def _clash(self, kind: str, first: Entry, second: Entry) -> MtpeftError:
        plugins = [self.plugins[entry.plugin] for entry in (first, second)]
        message = f'two plugins register the {KINDS[kind]} "{first.id}": {plugins[0]} and {plugins[1]}'
        return MtpeftError(message, hint="uninstall one of the two, or ask its author for another id")

    def _report(self) -> None:
        """Warn of plugins that failed, once; raise for one that breaks the contract."""
        for plugin in self.plugins.values():
            if plugin.state == "wrong":
                raise MtpeftError(plugin.error, hint=plugin.hint)
            if plugin.state == "failed" and plugin.name not in self._warned:
                self._warned.add(plugin.name)
                _say(f"plugin {plugin} is left out: {plugin.error}\n\nhint: {plugin.hint}")


_HOOKS = (*(f"register_{kind}" for kind in KINDS), *OBSERVERS)


def in_words(error: BaseException) -> str:
    """An exception of others on one line: its type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _say(message: str) -> None:
    print(f"warning: {visible_lines(message)}", file=sys.stderr)


@cache
def manager() -> Manager:
    """The plugins of this process, loaded on the first call."""
    return Manager()


def reset() -> None:
    """Forget all plugins; the next use loads the installed ones again."""
    manager.cache_clear()


def registry(kind: str) -> Mapping[str, Entry]:
    """`Manager.registry` of this process."""
    return manager().registry(kind)


def resolve(kind: str, id: str) -> Any:
    """`Manager.resolve` of this process."""
    return manager().resolve(kind, id)


def create(kind: str, id: str, settings: Mapping[str, Any], where: str, origin: Origin | None = None) -> Any:
    """`Manager.create` of this process."""
    return manager().create(kind, id, settings, where, origin)


def notify(hook: str, **arguments: Any) -> None:
    """`Manager.notify` of this process."""
    manager().notify(hook, **arguments)
