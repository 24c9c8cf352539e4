from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.packages import HOOKIMPL, Packages, registers

from mtpeft import plugins
from mtpeft.errors import MtpeftError, UsageError
from mtpeft.hookspecs import API_VERSION, hookimpl
from mtpeft.plugins import KINDS, Manager


class Registers:
    """A plugin object that registers one thing."""

    def __init__(self, kind: str, id: str, reference: str) -> None:
        def give() -> dict[str, str]:
            return {id: reference}

        setattr(self, f"register_{kind}", hookimpl(give))


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = Packages(tmp_path)
    yield packages.install
    packages.forget()


def test_an_installed_plugin_is_found_and_named(install) -> None:
    install("mtpeft-mine", registers("methods", mine="collections:OrderedDict"))
    manager = Manager()
    entry = manager.registry("methods")["mine"]
    assert (entry.plugin, entry.distribution, entry.version) == ("mtpeft-mine", "mtpeft-mine", "1.2")
    plugin = manager.plugins["mtpeft-mine"]
    assert (plugin.state, plugin.hooks, plugin.error) == ("loaded", ("register_methods",), "")
    assert plugin.seconds > 0


def test_what_is_registered_is_imported_only_when_resolved(install) -> None:
    install("mtpeft-lazy", registers("backbones", lazy="xmlrpc.server:SimpleXMLRPCServer"))
    sys.modules.pop("xmlrpc.server", None)
    manager = Manager()
    assert "lazy" in manager.registry("backbones")
    assert "xmlrpc.server" not in sys.modules
    assert manager.resolve("backbones", "lazy").__name__ == "SimpleXMLRPCServer"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nonsense_package", "ModuleNotFoundError: No module named 'nonsense_package'"),
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        (f"{HOOKIMPL}@hookimpl\ndef register_methods():\n    return 1 / 0", "register_methods: ZeroDivisionError"),
        (f"{HOOKIMPL}@hookimpl\ndef step_ended(stepp): pass", "PluginValidationError"),
    ],
)
def test_a_plugin_that_fails_is_reported_by_name_and_the_rest_goes_on(install, capsys, code: str, error: str) -> None:
    install("mtpeft-bad", code)
    install("mtpeft-good", registers("methods", good="collections:OrderedDict"))
    manager = Manager()
    assert "good" in manager.registry("methods")
    assert "joint" in manager.registry("schedules")
    assert manager.plugins["mtpeft-bad"].state == "failed"
    assert manager.plugins["mtpeft-good"].state == "loaded"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count('warning: plugin "mtpeft-bad" (mtpeft-bad 1.2) is left out') == 1
    assert error in shown.err
    assert "pip install -U mtpeft-bad" in shown.err


def test_an_unknown_hook_is_an_error_that_names_the_package(install) -> None:
    install("mtpeft-typo", f"{HOOKIMPL}@hookimpl\ndef register_method(): return {{}}")
    with pytest.raises(MtpeftError) as caught:
        Manager().registry("tasks")
    assert caught.value.message == 'plugin "mtpeft-typo" (mtpeft-typo 1.2) implements an unknown hook "register_method"'
    assert 'did you mean "register_methods"?' in caught.value.hint


def test_two_plugins_that_claim_one_id_are_an_error_that_names_both_packages(install) -> None:
    install("mtpeft-one", registers("methods", same="collections:OrderedDict"))
    install("mtpeft-two", registers("methods", same="collections:Counter"), version="3")
    manager = Manager()
    with pytest.raises(MtpeftError) as caught:
        manager.registry("methods")
    message = caught.value.message
    assert message.startswith('two plugins register the method "same"')
    assert '"mtpeft-one" (mtpeft-one 1.2)' in message
    assert '"mtpeft-two" (mtpeft-two 3)' in message
    assert caught.value.hint == "uninstall one of the two, or ask its author for another id"
    assert [problem.message for problem in manager.problems()] == [message]
    assert "joint" in manager.registry("schedules"), "other kinds go on"


def test_two_plugins_of_one_name_are_both_loaded(install) -> None:
    install("mtpeft-one", registers("methods", one="collections:OrderedDict"), plugin="mine")
    install("mtpeft-two", registers("methods", two="collections:Counter"), plugin="mine")
    assert {"one", "two"} <= set(Manager().registry("methods"))


@pytest.mark.parametrize(("step", "upgrade"), [(1, "mtpeft"), (-1, "mtpeft-old")])
def test_a_plugin_for_another_api_is_refused_with_what_to_upgrade(install, capsys, step: int, upgrade: str) -> None:
    api = API_VERSION + step
    install("mtpeft-old", registers("methods", old="collections:OrderedDict") + f"mtpeft_api = {api}\n")
    manager = Manager()
    assert "old" not in manager.registry("methods")
    plugin = manager.plugins["mtpeft-old"]
    assert plugin.error == f"it is built for plugin API {api}, and this mtpeft has API {API_VERSION}"
    assert plugin.hint == f"upgrade {upgrade}: pip install -U {upgrade}"
    assert plugin.error in capsys.readouterr().err


def test_a_plugin_for_this_api_is_loaded(install) -> None:
    install("mtpeft-new", registers("methods", new="collections:OrderedDict") + f"mtpeft_api = {API_VERSION}\n")
    assert "new" in Manager().registry("methods")


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_id_is_refused_with_did_you_mean(kind: str) -> None:
    plugins.manager().register(Registers(kind, "my-own-thing", "collections:OrderedDict"), "mine")
    with pytest.raises(UsageError) as caught:
        plugins.resolve(kind, "my-own-thin")
    assert caught.value.message == f'there is no {KINDS[kind]} "my-own-thin"'
    assert 'did you mean "my-own-thing"?' in caught.value.hint


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("nonsense_package:Thing", "ModuleNotFoundError"),
        ("collections:Thing", "AttributeError"),
    ],
)
def test_what_cannot_be_imported_is_an_error_that_names_the_plugin(reference: str, error: str) -> None:
    plugins.manager().register(Registers("methods", "mine", reference), "my-plugin")
    with pytest.raises(MtpeftError) as caught:
        plugins.resolve("methods", "mine")
    assert f'the method "mine" ({reference}) of plugin "my-plugin" (registered in this process)' in caught.value.message
    assert error in caught.value.message
    assert caught.value.hint == "repair the object that was registered"


def test_a_plugin_object_can_be_registered_and_taken_out_again() -> None:
    manager = plugins.manager()
    manager.register(Registers("methods", "mine", "mtpeft_plugins.partial.lora:Lora"), "my-plugin")
    assert plugins.resolve("methods", "mine").__name__ == "Lora"
    with pytest.raises(MtpeftError, match="already"):
        manager.register(Registers("methods", "other", "collections:OrderedDict"), "my-plugin")
    manager.unregister("my-plugin")
    assert "mine" not in plugins.registry("methods")


def test_a_reference_serves_one_kind_alone() -> None:
    manager = plugins.manager()
    for kind in ("methods", "balancers"):
        manager.register(Registers(kind, "mine", "mtpeft_plugins.partial.lora:Lora"), f"my-{kind}")
    assert plugins.resolve("methods", "mine").__name__ == "Lora"
    with pytest.raises(MtpeftError, match=r"does not derive from mtpeft\.api\.Balancer"):
        plugins.resolve("balancers", "mine")


def test_what_is_registered_anew_is_resolved_anew() -> None:
    manager = plugins.manager()
    for name in ("lora:Lora", "dora:Dora"):
        manager.register(Registers("methods", "mine", f"mtpeft_plugins.partial.{name}"), "my-plugin")
        assert plugins.resolve("methods", "mine").__name__ == name.split(":")[1]
        manager.unregister("my-plugin")


def test_a_plugin_object_with_an_unknown_hook_is_not_registered() -> None:
    class Wrong:
        @hookimpl
        def run_start(self, run: Any) -> None: ...

    with pytest.raises(MtpeftError, match='unknown hook "run_start"'):
        plugins.manager().register(Wrong(), "wrong")
    assert "wrong" not in plugins.manager().plugins
    assert "joint" in plugins.registry("schedules")


def test_reset_forgets_what_was_registered() -> None:
    plugins.manager().register(Registers("methods", "mine", "collections:OrderedDict"), "my-plugin")
    plugins.reset()
    assert "mine" not in plugins.registry("methods")


def test_create_builds_from_settings_and_names_the_key() -> None:
    assert plugins.create("schedules", "joint", {"steps": 3}, "schedule").steps == 3
    with pytest.raises(UsageError, match=r"there is no setting schedule\.stepz"):
        plugins.create("schedules", "joint", {"stepz": 3}, "schedule")


class Watcher:
    def __init__(self, fails: bool = False) -> None:
        self.seen: list[Any] = []
        self.fails = fails

    @hookimpl
    def step_ended(self, step: int, losses: Any) -> None:
        self.seen.append((step, losses))
        if self.fails:
            raise ValueError("no luck")


def steps(count: int) -> None:
    for step in range(count):
        plugins.notify("step_ended", run=None, stage=0, step=step, losses={"cls": 0.5})


def test_observers_get_the_arguments_they_ask_for() -> None:
    watcher = Watcher()
    plugins.manager().register(watcher, "watcher")
    steps(2)
    assert watcher.seen == [(0, {"cls": 0.5}), (1, {"cls": 0.5})]


def test_an_observer_that_raises_is_reported_once_and_switched_off(capsys, monkeypatch) -> None:
    monkeypatch.delenv("MTPEFT_STRICT", raising=False)
    bad, good = Watcher(fails=True), Watcher()
    plugins.manager().register(bad, "bad")
    plugins.manager().register(good, "good")
    steps(3)
    assert (len(bad.seen), len(good.seen)) == (1, 3)
    shown = capsys.readouterr().err
    assert shown.count("warning:") == 1
    assert (
        'plugin "bad" (registered in this process) raised in step_ended and is switched off: ValueError: no luck'
        in shown
    )


def test_an_observer_that_raises_stops_a_strict_run(monkeypatch) -> None:
    monkeypatch.setenv("MTPEFT_STRICT", "1")
    plugins.manager().register(Watcher(fails=True), "bad")
    with pytest.raises(ValueError, match="no luck"):
        steps(1)


def test_the_built_in_plugins_are_found_by_scanning() -> None:
    folder = Path(__import__("mtpeft_plugins").__file__).parent
    files = [path for path in folder.glob("*/*.py") if not path.stem.startswith("_")]
    entries = [entry for kind in KINDS for entry in plugins.registry(kind).values()]
    builtin = {e.reference: e.id for e in entries if e.reference.startswith("mtpeft_plugins.")}
    assert {reference.split(":")[0] for reference in builtin} == {
        f"mtpeft_plugins.{path.parent.name}.{path.stem}" for path in files
    }
    assert builtin["mtpeft_plugins.multitask.hydra_lora:HydraLora"] == "hydra-lora"
    assert builtin["mtpeft_plugins.balancing.uw:Uw"] == "uw"


@pytest.mark.parametrize("kind", KINDS)
def test_every_reference_that_mtpeft_registers_leads_somewhere(kind: str) -> None:
    for entry in plugins.registry(kind).values():
        assert callable(plugins.resolve(kind, entry.id)), entry
