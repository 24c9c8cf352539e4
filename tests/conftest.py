"""What every test stands on: offline, one thread, no deadline, and plugins as installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from mtpeft import plugins  # after the environment, which torch and the hub read when they are imported

settings.register_profile("mtpeft", deadline=None, max_examples=40)
settings.load_profile("mtpeft")


@pytest.fixture(autouse=True)
def installed_plugins() -> Iterator[None]:
    """What a test registers is gone after it."""
    yield
    plugins.reset()


@pytest.fixture
def shared_data() -> Path:
    """Real weights and data sets beside the checkout; tests that ask for them carry the marker ``shared_data``."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the checkout")
    return folder
