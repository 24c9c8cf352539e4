"""The recipes that come with the package: each one parses, and those of data beside the checkout run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtpeft.config import Config, Overrides, load
from mtpeft.training.dry_run import rehearse
from mtpeft.training.run import build_methods, build_tasks

RECIPES = sorted((Path(__file__).parents[1] / "tasks" / "recipes").glob("*.toml"))
ON_REAL_DATA = [path for path in RECIPES if path.name.startswith("pacs-")]


def name(path: Path) -> str:
    return path.stem


def test_there_are_recipes_of_both_schedules():
    schedules = {load(path).schedule.name for path in RECIPES}
    assert schedules >= {"joint", "sequential"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_a_configuration(path):
    config = load(path)
    assert isinstance(config, Config)
    assert list(build_tasks(config)) == list(config.tasks)
    assert [label for label, _ in build_methods(config)] == [method.label for method in config.methods]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_names_no_place_of_one_machine(path):
    for line in path.read_text("utf-8").splitlines():
        value = line.partition("#")[0].partition("=")[2].strip().strip('"')
        assert not value.partition(":")[2].startswith(("/", "~")), line
        assert not value.startswith(("/", "~")), line


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_configuration_gives_itself_again(path, tmp_path):
    config = load(path)
    again = tmp_path / "config.toml"
    again.write_text(config.to_toml(), "utf-8")
    assert load(again) == config


@pytest.mark.shared_data
@pytest.mark.parametrize("path", ON_REAL_DATA, ids=name)
def test_a_recipe_on_real_data_trains(path, shared_data, tmp_path):
    small = [f"tasks.{task}.batch_size=2" for task in ("pacs", "bccd", "camvid")]
    config = load(path, Overrides({"--steps": 4}, [*small, "image_size=64"]))
    report = rehearse(config)
    assert set(report["parameters"]["heads"]) == {"pacs", "bccd", "camvid"}
    assert len(report["stages"]) == (1 if config.schedule.name == "joint" else 3)
    assert report["parameters"]["shared"] > 0
