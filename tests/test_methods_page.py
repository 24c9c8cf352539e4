"""The methods page says what the code says; a part of what was measured for it is measured again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "methods_page.py"
AGAIN = "run: python benchmarks/methods_page.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = script()
FACTS = json.loads(page.FACTS.read_text())


def test_every_method_is_measured_and_no_other():
    assert sorted(FACTS) == page.built_in(), f"{AGAIN}, with the methods that are new"


def test_the_page_is_what_the_code_gives():
    assert page.PAGE.read_text() == page.render(FACTS), f"{AGAIN} --text"


def measured() -> list:
    """Every method; all but each twelfth are slow."""
    return [
        pytest.param(name, marks=[] if number % 12 == 0 else [pytest.mark.slow], id=name)
        for number, name in enumerate(page.built_in())
    ]


@pytest.mark.parametrize("method", measured())
@pytest.mark.filterwarnings("ignore")
def test_what_was_measured_is_measured_again(method):
    assert page.measure(method) == FACTS[method], f"{AGAIN} {method}"


def test_a_row_shows_what_a_method_declares():
    entry = {"idea": "An `idea`", "mergeable": True, "identity": False}
    facts = {"count": 12345, "families": {"vit": "", "swin": "", "resnet": "no site"}}
    assert page.row("some-id", entry, facts) == "| [`some-id`](#some-id) | An `idea` | 12,345 | yes | no | 2 of 3 |"


def test_settings_are_written_as_in_a_recipe():
    from mtpeft.plugins import resolve

    found = page.settings(resolve("methods", "lora"))
    assert found.startswith('`rank = 8`, `alpha = none`, `rslora = false`, `dropout = 0.0`, `init = "kaiming"`')
