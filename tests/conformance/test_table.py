"""The committed table of methods by family says what happens: what works works, and what refuses says that sentence."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_methods import GROUND

from mtpeft.plugins import registry
from mtpeft.testing import zoo


def script() -> ModuleType:
    """The script that writes the table."""
    path = Path(__file__).parents[2] / "benchmarks" / "methods_by_family.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TABLE = script()
WRITTEN = TABLE.written()
AGAIN = "run: python benchmarks/methods_by_family.py"


def everyday(method: str) -> list[str]:
    """All families for the ground methods; five of them, in rotation, for others."""
    families, start = list(zoo()), sorted(registry("methods")).index(method)
    return families if method in GROUND else [families[(4 * turn + start) % len(families)] for turn in range(5)]


def expect_row(method: str, families: list[str]) -> None:
    for family in families:
        found = TABLE.outcome(method, family)
        assert WRITTEN[method, family] == found, f"{method} on {family}: {found}; {AGAIN} {method}"


def test_the_table_has_every_method_and_every_family() -> None:
    expected = {(method, family) for method in registry("methods") for family in zoo()}
    assert set(WRITTEN) == expected, f"{AGAIN} {' '.join(sorted({m for m, _ in expected - set(WRITTEN)}))}"


def test_the_table_is_as_written() -> None:
    assert TABLE.render(WRITTEN) == TABLE.TABLE.read_text()


@pytest.mark.parametrize("method", sorted(registry("methods")))
def test_it_happens_as_the_table_says(method: str) -> None:
    expect_row(method, everyday(method))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(registry("methods")))
def test_it_happens_everywhere_as_the_table_says(method: str) -> None:
    expect_row(method, [family for family in zoo() if family not in everyday(method)])


def test_every_refusal_is_a_sentence_and_every_method_works_somewhere() -> None:
    for (method, family), outcome in WRITTEN.items():
        assert outcome.word in (TABLE.MERGES, TABLE.WORKS, TABLE.REFUSES)
        assert (10 < len(outcome.sentence) < 250) == bool(outcome.sentence), (method, family)
        assert outcome.sentence or outcome.word != TABLE.REFUSES, (method, family)
    assert {method for method in registry("methods") if WRITTEN[method, "vit"].word == TABLE.REFUSES} == set()


def test_a_row_survives_writing_and_reading() -> None:
    table = {(m, f): TABLE.Outcome("works") for m in ("a", "b") for f in ("vit", "swin")}
    table["a", "swin"] = TABLE.Outcome("refuses", 'no site matches "attn.q | conv"')
    assert TABLE.parse(TABLE.render(table)) == table
