"""A run of real data, trained once, to be copied and spoilt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from mtpeft.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data/``, ``picture.png`` and ``run/``, whose ``config.toml`` names the data."""
    root = tmp_path_factory.mktemp("trained")
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for number, label in enumerate(("cat", "dog")):
            place = root / "data" / split / label
            place.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (90 * number + index, 40, 200 - 90 * number)).save(place / f"{index}.png")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(root / "picture.png")
    line = ["train", "--tasks", f"cls=cls@folder:{root / 'data'}", "--method", "lora", "--backbone", "micro", "--out"]
    assert main([*line, str(root / "run"), "--steps", "2"]) == 0
    return root


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(trained / "run", tmp_path / "stranger" / "run"))
