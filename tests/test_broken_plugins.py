"""Broken plugins of many kinds: each is named, the rest works, and the process is as it was."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from support.broken_plugins import BROKEN, CHANGES, WHEN_USED, gives
from support.packages import Packages, registers

from mtpeft import plugins
from mtpeft.cli import main
from mtpeft.errors import MtpeftError
from mtpeft.hookspecs import hookimpl
from mtpeft.plugins import Manager
from mtpeft_plugins.partial.lora import Lora

GOOD = registers("methods", good="mtpeft_plugins.partial.lora:Lora")
MODULES = "import logging, os, random, signal, sys, warnings\nimport numpy, torch\n"


def process() -> dict[str, Any]:
    """Global state, read independently of what mends it."""
    return {
        "torch": (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        "modes": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "threads": torch.get_num_threads(),
        "random": (random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()),
        "folder": os.getcwd(),  # noqa: PTH109
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "path": list(sys.path),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "hook": sys.excepthook,
        "stdout": (sys.stdout, os.fstat(1).st_ino),
    }


@pytest.fixture(autouse=True)
def lenient(monkeypatch) -> None:
    monkeypatch.delenv("MTPEFT_STRICT", raising=False)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = Packages(tmp_path)
    packages.install("mtpeft-good", GOOD)
    yield packages
    packages.forget()


def kinds(table: dict[str, tuple[str, str]]) -> Any:
    return pytest.mark.parametrize(("code", "error"), table.values(), ids=table)


def assert_the_rest_works(manager: Manager) -> None:
    assert manager.plugins["mtpeft-good"].state == "loaded"
    assert manager.resolve("methods", "good") is Lora
    assert {"good", "lora"} <= set(manager.registry("methods"))
    assert manager.create("schedules", "joint", {"steps": 3}, "schedule").steps == 3


@kinds(BROKEN)
def test_it_is_left_out_by_name(packages, capsys, code: str, error: str) -> None:
    packages.install("mtpeft-bad", code)
    before = process()
    manager = Manager()
    assert_the_rest_works(manager)
    assert process() == before
    assert manager.plugins["mtpeft-bad"].state in ("failed", "incomplete")
    assert "bad" not in manager.registry("methods")
    shown = capsys.readouterr()
    assert shown.out == "" and "\x1b" not in shown.err
    assert shown.err.count('warning: plugin "mtpeft-bad" (mtpeft-bad 1.2) is left out') == 1
    assert error in shown.err
    assert [problem.message for problem in manager.problems()] == [
        line.removeprefix("warning: ") for line in shown.err.splitlines() if line.startswith("warning: ")
    ]


@kinds(BROKEN)
def test_it_raises_in_a_strict_process(packages, monkeypatch, code: str, error: str) -> None:
    packages.install("mtpeft-bad", code)
    monkeypatch.setenv("MTPEFT_STRICT", "1")
    with pytest.raises(MtpeftError, match='plugin "mtpeft-bad"') as caught:
        Manager().registry("methods")
    assert error in caught.value.message


@kinds(WHEN_USED)
def test_what_cannot_be_used_is_an_error_that_names_plugin_and_id(packages, capsys, code: str, error: str) -> None:
    packages.install("mtpeft-bad", registers("methods", bad="mtpeft_bad_things:Bad"), things=code)
    manager = Manager()
    assert "bad" in manager.registry("methods")
    before = process()
    with pytest.raises(MtpeftError) as caught:
        manager.create("methods", "bad", {}, "methods.bad")
    assert process() == before
    assert 'the method "bad"' in caught.value.message
    assert 'plugin "mtpeft-bad" (mtpeft-bad 1.2)' in caught.value.message
    assert error in caught.value.message
    assert_the_rest_works(manager)


@pytest.mark.parametrize(("change", "name"), CHANGES.items())
@pytest.mark.parametrize("hook", [False, True], ids=["imported", "registered"])
def test_what_it_changes_is_set_back_and_said(packages, capsys, change: str, name: str, hook: bool) -> None:
    registered = registers("methods", bad="mtpeft_plugins.partial.lora:Lora")
    code = registered.replace("    return", f"    {change}\n    return") if hook else f"{change}\n{registered}"
    packages.install("mtpeft-bad", MODULES + code)
    before = process()
    manager = Manager()
    assert_the_rest_works(manager)
    assert process() == before
    assert manager.plugins["mtpeft-bad"].changed == (name,)
    assert "bad" in manager.registry("methods"), "it is used all the same"
    shown = capsys.readouterr().err
    when = "in register_methods" if hook else "when it was imported"
    assert shown == f'warning: plugin "mtpeft-bad" (mtpeft-bad 1.2) changed {name} {when}; it was set back\n'


def test_a_change_stops_a_strict_process(packages, monkeypatch) -> None:
    packages.install("mtpeft-bad", "import torch; torch.set_default_dtype(torch.float64)")
    monkeypatch.setenv("MTPEFT_STRICT", "1")
    with pytest.raises(MtpeftError, match="changed torch's default dtype"):
        Manager()
    assert torch.get_default_dtype() is torch.float32


def test_what_a_lazy_import_changes_is_set_back_too(packages, capsys) -> None:
    things = f"{MODULES}torch.set_default_dtype(torch.float64)\nfrom mtpeft_plugins.partial.lora import Lora as Bad"
    packages.install("mtpeft-bad", registers("methods", bad="mtpeft_bad_things:Bad"), things=things)
    assert Manager().resolve("methods", "bad").__name__ == "Lora"
    assert torch.get_default_dtype() is torch.float32
    assert 'plugin "mtpeft-bad" (mtpeft-bad 1.2) changed torch\'s default dtype for "bad"' in capsys.readouterr().err


NOISE = "import os, sys\nprint('py')\nos.system('echo shell')\nos.write(1, b'raw')\nsys.__stdout__.write('own')\n"


@pytest.mark.parametrize("place", ["import", "hook", "lazy import"])
def test_what_it_prints_goes_to_stderr(packages, capfd, place: str) -> None:
    registered = registers("methods", bad="mtpeft_bad_things:Lora")
    noisy = registered.replace("    return", "    exec(NOISE)\n    return")
    code = {"import": NOISE + registered, "hook": f"NOISE = {NOISE!r}\n{noisy}", "lazy import": registered}[place]
    lora = "from mtpeft_plugins.partial.lora import Lora\n"
    packages.install("mtpeft-bad", code, things=(NOISE if place == "lazy import" else "") + lora)
    plugins.reset()
    assert main(["methods", "--json"]) == 0
    shown = capfd.readouterr()
    assert "bad" in {row["id"] for row in json.loads(shown.out)["methods"]}
    assert all(word in shown.err for word in ("py", "shell", "raw", "own"))


def test_the_listing_shows_state_and_reason_and_fails(packages, capsys) -> None:
    packages.install("mtpeft-bad", gives("{3: 'a:B'}"))
    packages.install("mtpeft-worse", "raise KeyboardInterrupt")
    packages.install("mtpeft-loud", f"import os; os.environ['LOUD'] = '1'; print('loud')\n{gives('{}')}")
    plugins.reset()
    assert main(["plugins", "--json"]) == 1
    shown = capsys.readouterr()
    listing = json.loads(shown.out)
    rows = {row["name"]: row for row in listing["plugins"]}
    assert rows["mtpeft-bad"]["state"] == "incomplete" and "3 is no id" in rows["mtpeft-bad"]["error"]
    assert rows["mtpeft-worse"]["state"] == "failed" and rows["mtpeft-worse"]["error"] == "KeyboardInterrupt"
    assert rows["mtpeft-loud"]["state"] == "loaded" and rows["mtpeft-loud"]["changed"] == ["environment variables"]
    assert len(listing["problems"]) == 2
    assert 'error: plugin "mtpeft-bad" (mtpeft-bad 1.2) is left out in part' in shown.err


@pytest.fixture
def stopped_by_sigterm():
    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("after", ["finally: pass", "except BaseException: pass", "except: raise ValueError"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_while_plugins_load_stops_the_program(packages, stopped_by_sigterm, after: str, number: str) -> None:
    press = f"import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.{number}); time.sleep(5)\n"
    packages.install("mtpeft-bad", press + after)
    before = process()["signals"]
    with pytest.raises(KeyboardInterrupt):
        Manager()
    assert process()["signals"] == before


class Watcher:
    def __init__(self, action: Any) -> None:
        self.action, self.calls = action, 0

    @hookimpl
    def step_ended(self, step: int) -> None:
        self.calls += 1
        self.action()


def leave(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), ValueError()])
def test_an_observer_that_leaves_ends_no_training(capsys, error: BaseException) -> None:
    bad, good = Watcher(leave(error)), Watcher(lambda: None)
    plugins.manager().register(bad, "bad")
    plugins.manager().register(good, "good")
    for step in range(3):
        plugins.notify("step_ended", run=None, stage=0, step=step, losses={})
    assert (bad.calls, good.calls) == (1, 3)
    assert f"raised in step_ended and is switched off: {type(error).__name__}" in capsys.readouterr().err


def test_an_observer_cannot_change_the_numbers(capsys) -> None:
    plugins.manager().register(Watcher(lambda: torch.manual_seed(3)), "seeds")
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    for step in range(2):
        plugins.notify("step_ended", run=None, stage=0, step=step, losses={})
    assert torch.equal(torch.rand(2), expected)
    shown = capsys.readouterr().err
    assert shown.count('plugin "seeds" (registered in this process) changed torch\'s random state in step_ended') == 1


def test_a_plugin_at_hand_is_refused_whole() -> None:
    class Odd:
        @hookimpl
        def register_methods(self) -> dict[str, str]:
            return {"bad": "mtpeft_plugins.partial.lora:Lora"}

        @hookimpl
        def step_ended(self, stepp: int) -> None: ...

    with pytest.raises(MtpeftError, match="PluginValidationError"):
        plugins.manager().register(Odd(), "odd")
    assert "bad" not in plugins.registry("methods")
    assert "odd" not in plugins.manager().plugins
