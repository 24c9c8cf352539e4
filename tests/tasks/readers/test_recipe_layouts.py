"""The recipes of published data sets on small data in their layouts: they train, compare, and know their splits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from support.recipe_layouts import LAYOUTS
from support.torchvision_samples import HASHED

from mtpeft.bench.identity import manifests
from mtpeft.bench.plan import load_plan
from mtpeft.bench.runner import Comparison
from mtpeft.config import Config, Overrides, load
from mtpeft.data.split_classes import split_classes
from mtpeft.files import read_json
from mtpeft.training.dry_run import rehearse
from mtpeft.training.session import Session

RECIPES = Path(__file__).parents[3] / "tasks" / "recipes"
STAGES = {"cifar100-10": 10, "imagenet-r-10": 10, "imagenet-a-10": 10, "cub-10": 10, "domainnet": 6, "core50": 8}


@pytest.fixture(autouse=True)
def any_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in HASHED:
        monkeypatch.setattr(import_module(f"torchvision.datasets.{module}"), "check_integrity", lambda *_: True)


def placed(name: str, root: Path, test: int = 2) -> Path:
    """A copy of the recipe, and its data where the recipe looks for it."""
    recipe = root / "tasks" / "recipes" / f"{name}.toml"
    recipe.parent.mkdir(parents=True)
    shutil.copy(RECIPES / recipe.name, recipe)
    LAYOUTS[name](root / "data", test)
    return recipe


def small(recipe: Path) -> Config:
    """One update a stage of two small images a task on the micro ViT."""
    settings = [f"tasks.{task}.batch_size=2" for task in load_plan(recipe).tasks]
    config = load(recipe, Overrides({"--steps": 1, "--out": recipe.parent / "run"}, settings))
    optimizer = replace(config.optimizer, precision="fp32", checkpointing=False)
    return replace(config, backbone="micro", backbone_options={}, image_size=32, workers=0, optimizer=optimizer)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_recipe_trains_on_the_published_layout(name, tmp_path):
    recipe = placed(name, tmp_path)
    config = small(recipe)
    report = rehearse(config)
    heads = {task.settings.get("group", label) for label, task in config.tasks.items()}
    assert set(report["parameters"]["heads"]) == heads
    assert [stage["updates"] for stage in report["stages"]] == [1] * STAGES.get(name, 1)
    plan = Comparison(recipe, tmp_path)
    assert len(plan.missing()) == len(plan.methods)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_split_has_a_hash_that_changes_with_it(name, tmp_path):
    before, after = (manifests(split_classes(small(placed(name, tmp_path / str(test), test)))) for test in (2, 3))
    for task, splits in before.items():
        assert {split for split, kept in splits.items() if len(kept["sha256"]) == 64} == {"train", "val", "test"}
        assert len({kept["sha256"] for kept in splits.values()}) == 3
        assert after[task]["train"] == splits["train"] and after[task]["val"] == splits["val"]
        assert after[task]["test"]["sha256"] != splits["test"]["sha256"]


def test_a_run_keeps_the_hashes(tmp_path):
    config = small(placed("domainnet", tmp_path))
    Session.start(config)
    kept = read_json(Path(config.output.dir) / "manifest.json")["data"]
    assert kept == manifests(config) and len(kept) == 6
