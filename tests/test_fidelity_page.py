"""The fidelity page is as its files say, and no comparison in it is off."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = sorted((BENCHMARKS / "results" / "fidelity").glob("*.json"))


def test_the_page_is_in_step_with_its_files():
    spec = importlib.util.spec_from_file_location("fidelity_page", BENCHMARKS / "fidelity_page.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (BENCHMARKS / "results" / "fidelity.md").read_text()
    assert written == script.page(), "run: python benchmarks/fidelity_page.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_comparison_is_close_or_says_why_there_is_none(path):
    found = json.loads(path.read_text())
    assert found["method"] == path.stem
    if found["reference"] is None:
        assert len(found["why"]) > 20
    else:
        assert found["max_output_difference"] <= 1e-5
        assert found["max_gradient_difference"] <= 1e-5
