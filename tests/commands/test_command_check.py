"""``mtpeft check`` tells sound methods from broken ones, and says which promise is broken."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass, replace

import pytest

from mtpeft import plugins
from mtpeft.api import Declarations, Method, Site, WeightPart, hookimpl, zeros
from mtpeft.cli import main


class Shift(WeightPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.by = zeros(*site.shape)

    def forward(self, weight):
        return weight + self.by


@dataclass
class Sound(Method):
    """Adds a tensor."""

    declares = Declarations(category="partial", mergeable=True)
    at: str = "mlp.fc1"

    def part(self, site: Site) -> WeightPart:
        return Shift(site)


@dataclass
class Boastful(Sound):
    """Says that it does not merge, and merges."""

    declares = replace(Sound.declares, mergeable=False)


@dataclass
class Wide(Sound):
    """Gives a weight of another shape."""

    def part(self, site: Site) -> WeightPart:
        return Transposed(site)


class Transposed(Shift):
    def forward(self, weight):
        return super().forward(weight).T


class Unfinished(Method):
    """Has no `part`."""

    declares = Declarations(category="partial")


@pytest.fixture
def package(installed_plugins: None) -> None:
    module = types.ModuleType("mtpeft_double")
    module.Sound, module.Boastful, module.Wide, module.Unfinished = Sound, Boastful, Wide, Unfinished
    sys.modules["mtpeft_double"] = module
    names = {name.lower(): f"mtpeft_double:{name}" for name in ("Sound", "Boastful", "Wide", "Unfinished")}
    plugin = types.SimpleNamespace(register_methods=hookimpl(lambda: names))
    plugins.manager().register(plugin, "mtpeft-double")


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(("check", *arguments, "--family", "vit"))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_sound_method_passes(capsys, package):
    code, out, err = outcome(capsys, "sound", "--json")
    rows = json.loads(out)["checks"]
    assert (code, err) == (0, "")
    assert [(row["scope"], row["failed"]) for row in rows] == [("shared", []), ("task", [])]
    assert all(row["checks"] > 15 for row in rows)


def test_a_package_is_all_its_methods_and_the_broken_promise_is_named(capsys, package):
    code, out, err = outcome(capsys, "mtpeft-double")
    assert code == 1
    assert "refuses_to_merge" in out and "boastful" in out and "sound" in out
    assert "checks failed" in err and "hint:" in err


def test_a_method_that_cannot_run_or_be_built_hides_no_other(capsys, package):
    code, out, err = outcome(capsys, "mtpeft-double", "--json")
    failed = {row["method"]: row["failed"] for row in json.loads(out)["checks"]}
    assert code == 1 and failed["sound"] == []
    assert failed["wide"] == ["attaches"] and failed["unfinished"] == ["builds_with_defaults"]
    code, out, err = outcome(capsys, "wide")
    assert code == 1 and "wide (shared) on vit: attaches: Transposed.forward gives the shape (32, 128)" in err
    code, out, err = outcome(capsys, "unfinished")
    assert code == 1 and "unfinished: " in err and "abstract" in err


def test_what_is_neither_is_said(capsys, package):
    code, _, err = outcome(capsys, "mtpeft-doubel")
    assert code == 2 and "neither a method nor a package" in err
