"""The recipes that come with the package: each one parses, and those of data beside the checkout run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mtpeft.bench.plan import BenchConfig, check, load_plan, methods_of
from mtpeft.config import Config, Overrides, load
from mtpeft.peft.configured import build_methods
from mtpeft.training.dry_run import rehearse
from mtpeft.training.setup import build_tasks

RECIPES = sorted((Path(__file__).parents[1] / "tasks" / "recipes").glob("*.toml"))
ON_REAL_DATA = [path for path in RECIPES if "shared/data" in path.read_text("utf-8")]


def name(path: Path) -> str:
    return path.stem


def test_there_are_recipes_of_both_schedules():
    schedules = {load_plan(path).schedule.name for path in RECIPES}
    assert schedules >= {"joint", "sequential"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_a_configuration(path):
    config = load_plan(path)
    assert isinstance(config, Config)
    assert list(build_tasks(config)) == list(config.tasks)
    assert [label for label, _ in build_methods(config)] == [method.label for method in config.methods]
    assert config.methods or config.table(BenchConfig).methods


@pytest.mark.parametrize("path", [path for path in RECIPES if load_plan(path).table(BenchConfig).methods], ids=name)
def test_a_comparison_names_methods_that_there_are(path):
    config = load_plan(path)
    methods = methods_of(config)
    check(config, methods)
    for method in methods:
        assert build_methods(load(path, Overrides({"--method": method})))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_names_no_place_of_one_machine(path):
    for line in path.read_text("utf-8").splitlines():
        value = line.partition("#")[0].partition("=")[2].strip().strip('"')
        assert not value.partition(":")[2].startswith(("/", "~")), line
        assert not value.startswith(("/", "~")), line


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_configuration_gives_itself_again(path, tmp_path):
    config = load_plan(path)
    again = tmp_path / "config.toml"
    again.write_text(config.to_toml(), "utf-8")
    assert load_plan(again) == replace(config, tables={})


@pytest.mark.shared_data
@pytest.mark.parametrize("path", ON_REAL_DATA, ids=name)
def test_a_recipe_on_real_data_trains(path, shared_data, tmp_path):
    tasks = load_plan(path).tasks
    small = [f"tasks.{task}.batch_size=2" for task in tasks]
    config = load(path, Overrides({"--steps": 4, "--method": "hydra-lora"}, [*small, "image_size=64"]))
    report = rehearse(config)
    assert set(report["parameters"]["heads"]) == {task.settings.get("group", label) for label, task in tasks.items()}
    parts = sum(task.settings.get("split", 1) for task in tasks.values())
    assert len(report["stages"]) == (1 if config.schedule.name == "joint" else parts)
    assert report["parameters"]["shared"] > 0
