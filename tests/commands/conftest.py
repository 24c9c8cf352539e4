from __future__ import annotations

import pytest
from support import training_toy  # beside the tests of the training room


@pytest.fixture(autouse=True)
def toy_plugin(installed_plugins: None) -> None:
    training_toy.register()
