"""Plugins: found by entry point, loaded one by one, diagnosed by name; what they register is imported when used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial, reduce
from importlib import import_module, metadata
from time import perf_counter
from types import MappingProxyType
from typing import Any, TypeVar

import pluggy

from mtpeft import __version__, hookspecs
from mtpeft.errors import MtpeftError, UsageError, did_you_mean
from mtpeft.foreign_code import IMPORTS, NUMBERS, PROCESS, State, contained
from mtpeft.kinds import KINDS, Entry, flaw_of_class, flaw_of_entry
from mtpeft.names import visible_lines
from mtpeft.plugin import IN_PROCESS, Plugin, in_words
from mtpeft.settings import Origin, build

T = TypeVar("T")
GROUP = "mtpeft"
AT_IMPORT = (*NUMBERS, *PROCESS, *IMPORTS)
"""The global state that the entry module of a plugin, which imports nothing heavy, has no reason to change."""
OBSERVERS = ("run_started", "stage_ended", "step_ended", "run_ended")


class Manager:
    """All plugins of this process.

    Args:
        entry_points: what to load; the installed ones of the group ``mtpeft`` by default.
    """

    def __init__(self, entry_points: Iterable[metadata.EntryPoint] | None = None) -> None:
        self._pluggy = pluggy.PluginManager(GROUP)
        self._pluggy.add_hookspecs(hookspecs)
        self._registries: dict[str, Mapping[str, Entry]] = {}
        self._resolved: dict[tuple[str, str], Any] = {}
        self._muted: set[str] = set()
        self._warned: set[str] = set()
        self.plugins: dict[str, Plugin] = {}
        installed = metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        for entry_point in sorted(installed, key=lambda e: e.name):
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
        self._contained(about, "when it was registered", partial(self._add, plugin, about), *AT_IMPORT)
        if about.error:
            self._withdraw(name)
            raise MtpeftError(about.error, hint=about.hint)
        self.plugins[name] = about

    def unregister(self, name: str) -> None:
        """Take a plugin out again."""
        del self.plugins[name]
        self._withdraw(name)

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
            MtpeftError: if it cannot be imported, or is not what the kind asks for.
        """
        entries = self.registry(kind)
        if id not in entries:
            failed = any(plugin.error for plugin in self.plugins.values())
            more = " `mtpeft plugins` shows what did not load." if failed else ""
            raise UsageError(f'there is no {KINDS[kind]} "{id}"', hint=did_you_mean(id, entries) + more)
        if (kind, id) not in self._resolved:
            self._resolved[kind, id] = self._import(kind, entries[id])
        return self._resolved[kind, id]

    def create(self, kind: str, id: str, settings: Mapping[str, Any], where: str, origin: Origin | None = None) -> Any:
        """An instance of what is registered under an id, from its settings; see `mtpeft.settings.build`.

        Raises:
            MtpeftError: naming the plugin, where its own code raises anything else.
        """
        make = partial(build, self.resolve(kind, id), settings, where, origin)
        entry = self.registry(kind)[id]
        return self._required(entry, f'the {KINDS[kind]} "{id}" of plugin {{}} cannot be made', make)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell all observers. One that raises is reported once and switched off; with ``MTPEFT_STRICT=1`` it raises."""
        for impl in reversed(getattr(self._pluggy.hook, hook).get_hookimpls()):
            if impl.plugin_name in self._muted:
                continue
            plugin = self.plugins[impl.plugin_name]
            outcome = contained(partial(impl.function, *(arguments[name] for name in impl.argnames)), NUMBERS)
            self._note(plugin, f"in {hook}", outcome.changed)
            if outcome.error is None:
                continue
            if _strict():
                raise outcome.error
            self._muted.add(impl.plugin_name)
            _say(f"plugin {plugin} raised in {hook} and is switched off: {in_words(outcome.error)}")

    def problems(self) -> list[MtpeftError]:
        """What breaks the contract, in any registry, and every plugin that failed."""
        problems = {}
        for kind in KINDS:
            try:
                self.registry(kind)
            except MtpeftError as error:
                problems[error.message] = error
        failed = [plugin for plugin in self.plugins.values() if plugin.left_out]
        return [*problems.values(), *(MtpeftError(plugin.left_out, hint=plugin.hint) for plugin in failed)]

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        package = entry_point.dist
        distribution, version = (package.name, package.version) if package else ("mtpeft", __version__)
        about = Plugin(entry_point.name, distribution, version)
        if about.name in self.plugins:
            about.name = f"{about.name} of {about.distribution}"
        self.plugins[about.name] = about
        start = perf_counter()
        self._contained(about, "when it was imported", lambda: self._add(entry_point.load(), about), *AT_IMPORT)
        about.seconds = perf_counter() - start
        if about.error:
            self._withdraw(about.name)
        if about.state == "failed" and _strict():
            raise MtpeftError(about.left_out, hint=about.hint)

    def _contained(self, about: Plugin, when: str, call: Callable[[], T], *states: State, hook: str = "") -> T | None:
        """Call code of a plugin; where it raises, the plugin has failed.

        Raises:
            MtpeftError: with ``MTPEFT_STRICT=1``, where it raises or changes global state.
        """
        outcome = contained(call, states)
        self._note(about, when, outcome.changed)
        if outcome.error is not None:
            self._fail(about, f"{hook}: {in_words(outcome.error)}".removeprefix(": "), "failed", outcome.error)
        return outcome.value

    def _fail(self, about: Plugin, error: str, state: str, cause: BaseException | None = None) -> None:
        about.fail(error, about.remedy, state)
        if _strict():
            raise MtpeftError(about.left_out, hint=about.hint) from cause

    def _note(self, about: Plugin, when: str, changed: tuple[str, ...]) -> None:
        """Say once what global state a plugin changed."""
        new = tuple(name for name in changed if name not in about.changed)
        about.changed += new
        if not new:
            return
        message = f"plugin {about} changed {', '.join(new)} {when}; it was set back"
        if _strict():
            raise MtpeftError(message, hint=about.remedy)
        _say(message)

    def _add(self, plugin: Any, about: Plugin) -> None:
        version, own = getattr(plugin, "mtpeft_api", hookspecs.API_VERSION), hookspecs.API_VERSION
        if version != own:
            outdated = "mtpeft" if isinstance(version, int) and version > own else about.distribution
            error = f"it is built for plugin API {version}, and this mtpeft has API {own}"
            about.fail(error, f"upgrade {outdated}: pip install -U {outdated}")
            return
        about.hooks = tuple(sorted(self._hooks_of(plugin)))
        unknown = [hook for hook in about.hooks if hook not in _HOOKS]
        if unknown:
            error = f'plugin {about} implements an unknown hook "{unknown[0]}"'
            about.fail(error, did_you_mean(unknown[0], _HOOKS), "wrong")
            return
        bare = [hook for hook in _HOOKS if hook not in about.hooks and callable(getattr(plugin, hook, None))]
        if bare or not about.hooks:
            about.fail(f"its {bare[0]} is not marked as a hook" if bare else "it implements no hook", _UNMARKED)
            return
        self._pluggy.register(plugin, about.name)
        self._registries.clear()

    def _withdraw(self, name: str) -> None:
        """Take all hooks of a plugin out, those too that it registered before it failed."""
        if self._pluggy.has_plugin(name):
            self._pluggy.unregister(name=name)
        self._registries.clear()
        self._resolved.clear()

    def _hooks_of(self, plugin: Any) -> Iterator[str]:
        for name in dir(plugin):
            options = self._pluggy.parse_hookimpl_opts(plugin, name)
            if options is not None:
                yield options.get("specname") or name

    def _registered(self, kind: str) -> Iterator[Entry]:
        hook = f"register_{kind}"
        for impl in getattr(self._pluggy.hook, hook).get_hookimpls():
            about = self.plugins[impl.plugin_name]
            give = partial(_references, impl.function)
            references = self._contained(about, f"in {hook}", give, *AT_IMPORT, hook=hook) or {}
            for id, reference in references.items():
                if flaw := flaw_of_entry(id, reference):
                    self._fail(about, f"{hook}: {flaw}", "incomplete")
                else:
                    yield Entry(id, reference, about.name, about.distribution, about.version)

    def _import(self, kind: str, entry: Entry) -> Any:
        """What a reference leads to, held to the contract of its kind."""
        module, _, attribute = entry.reference.partition(":")
        what = f'the {KINDS[kind]} "{entry.id}" ({entry.reference}) of plugin {{}}'

        def get() -> Any:
            return reduce(getattr, attribute.split("."), import_module(module))

        made = self._required(entry, f"{what} cannot be imported", get, *NUMBERS, *PROCESS)
        if flaw := self._required(entry, f"{what} cannot be looked at", partial(flaw_of_class, kind, made)):
            plugin = self.plugins[entry.plugin]
            raise MtpeftError(f"{what.format(plugin)} cannot be used: {flaw}", hint=plugin.remedy)
        return made

    def _required(self, entry: Entry, failed: str, call: Callable[[], T], *states: State) -> T:
        """Call code of a plugin without which nothing goes on.

        Raises:
            MtpeftError: what it raises itself; else ``failed``, with the plugin put in, and what happened.
        """
        plugin = self.plugins[entry.plugin]
        outcome = contained(call, states)
        self._note(plugin, f'for "{entry.id}"', outcome.changed)
        if isinstance(outcome.error, MtpeftError):
            raise outcome.error
        if outcome.error is not None:
            message = f"{failed.format(plugin)}: {in_words(outcome.error)}"
            raise MtpeftError(message, hint=plugin.remedy) from outcome.error
        return outcome.value  # type: ignore[return-value]

    def _clash(self, kind: str, first: Entry, second: Entry) -> MtpeftError:
        plugins = [self.plugins[entry.plugin] for entry in (first, second)]
        message = f'two plugins register the {KINDS[kind]} "{first.id}": {plugins[0]} and {plugins[1]}'
        return MtpeftError(message, hint="uninstall one of the two, or ask its author for another id")

    def _report(self) -> None:
        """Warn of plugins that failed, once; raise for one that breaks the contract."""
        for plugin in self.plugins.values():
            if plugin.state == "wrong":
                raise MtpeftError(plugin.error, hint=plugin.hint)
            if plugin.left_out and plugin.name not in self._warned:
                self._warned.add(plugin.name)
                _say(f"{plugin.left_out}\n\nhint: {plugin.hint}")


_HOOKS = (*(f"register_{kind}" for kind in KINDS), *OBSERVERS)
_UNMARKED = "write @hookimpl, from mtpeft.api, above each function that is a hook"


def _references(hook: Callable[[], Any]) -> dict[Any, Any]:
    given = hook()
    if not isinstance(given, Mapping):
        raise TypeError(f'it returned {type(given).__name__}, not {{id: "package.module:Class"}}')
    return dict(given)


def _strict() -> bool:
    return os.environ.get("MTPEFT_STRICT") == "1"


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
