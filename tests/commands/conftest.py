from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import training_toy  # beside the tests of the training room


@pytest.fixture(autouse=True)
def toy_plugin(installed_plugins: None) -> None:
    training_toy.register()
