from __future__ import annotations

import pytest
import torch
from support import continual_methods, training_toy

from mtpeft import plugins

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtpeft.files.sync", lambda path: None)


@pytest.fixture(autouse=True)
def strangers(installed_plugins: None) -> None:
    training_toy.register()
    plugins.manager().register(continual_methods.Plugin(), "continual")
