from __future__ import annotations

import math
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtpeft.bench.plan import BenchConfig
from mtpeft.config import Config, Overrides, load, load_methods
from mtpeft.errors import UsageError
from mtpeft.settings import Count, build, check

RECIPE = """
seed = 3
weights = "vit.safetensors"
[[methods]]
name = "lora"
rank = 16
[tasks.pets]
type = "cls"
data = "folder:data/pets"
[tasks.cells]
type = "det"
head = { name = "fcos", width = 64 }
[schedule]
name = "sequential"
epochs = 10
[optimizer]
lr = 1e-3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "pets-cells.toml"
    path.write_text(RECIPE)
    return path


def flags(*settings: str, **values: Any) -> Overrides:
    return Overrides({f"--{name}": value for name, value in values.items()}, settings)


def refusal(call: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        call()
    return caught.value


def test_a_recipe_becomes_a_configuration(recipe: Path) -> None:
    config = load(recipe)
    assert (config.seed, config.data_seed, config.class_order_seed) == (3, 3, 3)
    assert [(m.name, m.label, m.settings) for m in config.methods] == [("lora", "lora", {"rank": 16})]
    assert list(config.tasks) == ["pets", "cells"]
    assert config.tasks["cells"].type == "det"
    assert config.tasks["cells"].settings == {"head": {"name": "fcos", "width": 64}}
    assert (config.schedule.name, config.schedule.settings) == ("sequential", {"epochs": 10})
    assert config.optimizer.lr == 1e-3
    assert config.balance.name == "equal"


def test_paths_of_a_recipe_are_relative_to_it_and_those_of_flags_to_here(recipe: Path, monkeypatch, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load(recipe, flags(tasks="pets,more=cls@folder:data?split=a/../b"))
    assert config.weights == str(tmp_path / "vit.safetensors")
    assert config.tasks["pets"].settings["data"] == f"folder:{tmp_path}/data/pets"
    assert config.tasks["more"].settings["data"] == f"folder:{elsewhere}/data?split=a/../b"
    assert (
        load(None, flags(tasks="a=cls@hub:hf://beans", method="lora")).tasks["a"].settings["data"] == "hub:hf://beans"
    )


def test_the_name_of_a_data_set_is_no_part_of_its_path(recipe: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)

    def place(data: str) -> str:
        return load(None, flags(tasks=f"a=cls@{data}", method="lora")).tasks["a"].settings["data"]

    assert place("torchvision:CIFAR100@../data?download=true") == (
        f"torchvision:CIFAR100@{tmp_path.parent}/data?download=true"
    )
    assert place(place("torchvision:CIFAR100@data")) == f"torchvision:CIFAR100@{tmp_path}/data"
    assert place("folder:my.data@home/pets") == f"folder:{tmp_path}/my.data@home/pets"
    (tmp_path / "cats@home").mkdir()
    assert place("folder:cats@home") == f"folder:{tmp_path}/cats@home"


def test_flags_win_and_every_value_keeps_its_origin(recipe: Path) -> None:
    config = load(recipe, flags("methods.lora.rank=4", "tasks.cells.head.width=32", seed=5, steps=7))
    assert config.seed == 5
    assert config.methods[0].settings["rank"] == 4
    assert config.tasks["cells"].settings["head"] == {"name": "fcos", "width": 32}
    assert config.schedule.settings == {"steps": 7}, "--steps takes the place of the recipe's epochs"
    origins = {
        key: config.origin(key) for key in ("seed", "methods.lora.rank", "schedule.steps", "optimizer.lr", "device")
    }
    assert origins == {
        "seed": "--seed", "methods.lora.rank": "--set", "schedule.steps": "--steps", "optimizer.lr": str(recipe),
        "device": "default",
    }  # fmt: skip
    assert config.origin("schedule.epochs") == "default"


def test_a_schedule_flag_takes_the_place_of_the_recipes_stages(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("epochs = 10", 'stages = [["pets"], ["cells"]]'))
    assert load(recipe).schedule.settings == {"stages": [["pets"], ["cells"]]}
    assert load(recipe, flags(schedule="joint")).schedule.settings == {}


def test_accumulate_and_eval_every_belong_to_the_schedule_under_either_name(recipe: Path) -> None:
    config = load(recipe, flags("optimizer.accumulate=2", "output.eval_every=50"))
    assert config.schedule.settings == {"epochs": 10, "accumulate": 2, "eval_every": 50}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("2", 2),
        ("true", True),
        ('"2"', "2"),
        ("qkv | conv", "qkv | conv"),
        ("[1, 2]", [1, 2]),
        ("", ""),
    ],
)
def test_a_set_value_is_toml_or_else_text(text: str, value: Any) -> None:
    config = load(None, flags(f"methods.lora.at={text}", tasks="cls", method="lora"))
    assert config.methods[0].settings["at"] == value


def test_methods_on_the_command_line() -> None:
    methods = load(None, flags(tasks="cls", method="lora@shared+adaptformer@task+lora@task")).methods
    assert [(m.name, m.label, m.settings) for m in methods] == [
        ("lora", "lora", {"scope": "shared"}),
        ("adaptformer", "adaptformer", {"scope": "task"}),
        ("lora", "lora-2", {"scope": "task"}),
    ]


def test_methods_on_the_command_line_keep_the_recipes_settings(recipe: Path) -> None:
    config = load(recipe, flags(method="dora+lora@task"))
    assert [(m.name, m.settings) for m in config.methods] == [("dora", {}), ("lora", {"rank": 16, "scope": "task"})]


def test_tasks_on_the_command_line_choose_from_the_recipe_and_add_to_it(recipe: Path) -> None:
    config = load(recipe, flags(tasks="cells,seg,digits=cls"))
    assert {name: task.type for name, task in config.tasks.items()} == {"cells": "det", "seg": "seg", "digits": "cls"}
    assert config.tasks["cells"].settings["head"]["name"] == "fcos"
    assert load(recipe, flags(tasks="pets=seg")).tasks["pets"].settings == {}


def test_methods_alone_take_bare_settings() -> None:
    config = load_methods("lora@task+ssf", ["rank=4", "methods.ssf.blocks=0-3"])
    assert [m.settings for m in config.methods] == [{"scope": "task", "rank": 4}, {"blocks": "0-3"}]


@pytest.mark.parametrize("name", ["a", "Pets-2", "0_x", "items", "mlp"])
def test_task_names(name: str) -> None:
    assert list(load(None, flags(tasks=f"{name}=cls", method="lora")).tasks) == [name]


@pytest.mark.parametrize("name", ["shared", "-a", "a b", "a.b", "ä", "a/b"])
def test_bad_task_names(name: str) -> None:
    error = refusal(lambda: load(None, flags(tasks=f"{name}=cls", method="lora")))
    assert error.message == f'a task cannot be called "{name}"'
    assert "shared" in error.hint


ERRORS = [
    ("sead = 1", "there is no setting sead", 'did you mean "seed"?'),
    ("[optimiser]\nlr = 1", "there is no setting optimiser", 'did you mean "optimizer"?'),
    ("[optimizer]\nlr_rate = 1", "there is no setting optimizer.lr_rate", "There is: checkpointing"),
    ('seed = "a"', 'seed = "a"', "seed takes a whole number of at least 0; the default is 0"),
    ("seed = true", "seed = true", "a whole number"),
    ("seed = -1", "greater than or equal to 0", "a whole number"),
    ('device = "gpu"', "it is none of what there is", 'auto, cpu, mps, cuda or cuda:N; the default is "auto"'),
    ("[bench]\nseeds = []", "does not fit: it should have at least 1 item", "bench.seeds takes a list"),
    ("[bench]\nmethods = 3", "it should be a list", "a list, each a text"),
    ("[optimizer]\nlr = inf", "it should be a finite number", "a number above 0"),
    ("[optimizer]\nlr = 0", "optimizer.lr = 0", "optimizer.lr takes a number"),
    ("[optimizer]\nname = 3", "optimizer.name = 3", "optimizer.name takes a text"),
    ('[optimizer]\nprecision = "fp16"', 'optimizer.precision = "fp16"', "There is: bf16, fp32."),
    ("optimizer = 3", "optimizer = 3", "[optimizer]"),
    (
        "image_size = [1, 2, 3]",
        "image_size = [1, 2, 3]",
        "a whole number of at least 1 or [a whole number of at least 1, a whole number of at least 1]",
    ),
    ("[schedule]\nname = 3", "schedule.name = 3", 'name = "joint"'),
    ("[methods]\nlora = 1", "methods in", "[[methods]]"),
    ("[[methods]]\nrank = 1", "a method in", 'name = "lora"'),
    ("tasks = 3", "tasks (from", "tasks.SETTING"),
    ("[tasks]\npets = 3", "tasks.pets = 3", "[tasks.pets]"),
    ('[tasks.pets]\ndata = "data/pets"', 'tasks.pets.data = "data/pets" is not READER:PATH', "folder:data/pets"),
    ("[tasks.pets]\ntype = 1", "tasks.pets.type = 1", 'type = "pets"'),
    ("seed = ", "cannot be read", "TOML"),
]


@pytest.mark.parametrize(("text", "message", "hint"), ERRORS)
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    error = refusal(lambda: load(path, flags(method="lora")))
    assert message in error.message
    assert hint in error.hint


def test_an_error_says_where_the_value_came_from(recipe: Path) -> None:
    assert "(from --set)" in refusal(lambda: load(recipe, flags("optimizer.lr=fast"))).message
    recipe.write_text('seed = "a"')
    assert f"(from {recipe})" in refusal(lambda: load(recipe)).message
    assert "(from --seed)" in refusal(lambda: load(None, flags(seed="a", tasks="cls", method="lora"))).message


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (flags(method="lora"), "there is no task to train", "--tasks cls,det,seg"),
        (flags(tasks="cls"), "there is no method to train with", "--method hydra-lora"),
        (flags(tasks="cls,cls", method="lora"), 'names "cls" twice', '"cls-2=cls"'),
        (flags(tasks="cls,,", method="lora"), "is not NAME or NAME=TYPE@READER:PATH", "--tasks"),
        (flags(tasks="pets=", method="lora"), "is not NAME or NAME=TYPE@READER:PATH", "--tasks"),
        (flags(tasks="cls", method="lora@"), "is not METHOD or METHOD@SCOPE", "--method lora@shared"),
        (flags(tasks="cls", method="lora++ssf"), "is not METHOD or METHOD@SCOPE", "--method lora@shared"),
        (flags("rank", tasks="cls", method="lora"), '--set "rank" is not KEY=VALUE', "optimizer.lr=3e-4"),
        (flags("methods.lorra.rank=2", tasks="cls", method="lora"), 'there is no "lorra"', 'did you mean "lora"?'),
        (flags("tasks.clz.data=x", tasks="cls", method="lora"), 'there is no "clz"', 'did you mean "cls"?'),
        (flags("methods.lora=2", tasks="cls", method="lora"), "names no setting", "methods.NAME.SETTING=VALUE"),
        (flags("seed.x=2", "seed=1", tasks="cls", method="lora"), "seed (from --set) is a table", "seed.SETTING"),
        (flags("seed=1", "seed.x=2", tasks="cls", method="lora"), "seed (from --set) is a value", "seed = ..."),
    ],
)
def test_a_wrong_command_line_is_refused(overrides: Overrides, message: str, hint: str) -> None:
    error = refusal(lambda: load(None, overrides))
    assert message in error.message
    assert hint in error.hint


def test_another_rooms_table_is_that_rooms_dataclass(recipe: Path) -> None:
    recipe.write_text(RECIPE + "[bench]\nseeds = [1, 2]")
    config = load(recipe, flags("bench.top=3"))
    assert config.table(BenchConfig) == BenchConfig(seeds=(1, 2), top=3)
    assert load(None, flags(tasks="cls", method="lora")).table(BenchConfig) == BenchConfig()
    assert "bench" not in config.to_toml(), "a run is not what it is compared with"
    error = refusal(lambda: load(recipe, flags("bench.sedes=[1]")))
    assert error.message == "there is no setting bench.sedes (from --set)" and 'did you mean "seeds"' in error.hint


@pytest.mark.parametrize(("text", "meant"), [("[bensh]\ntop = 1", "bench"), ("[logger.csv]\nfile = 1", "loggers")])
def test_a_table_that_no_room_has_is_refused(recipe: Path, text: str, meant: str) -> None:
    recipe.write_text(RECIPE + text)
    assert f'did you mean "{meant}"?' in refusal(lambda: load(recipe)).hint


@dataclass
class CsvLogger:
    """A logger of a plugin."""

    file: str = "log.csv"
    every: Count = 1


def test_a_loggers_settings_are_its_own_and_checked_when_it_is_built(recipe: Path) -> None:
    recipe.write_text(RECIPE + '[loggers.csv]\nfile = "a.csv"')
    config = load(recipe, flags("loggers.csv.every=2"))
    where, origin = "loggers.csv", config.origin
    assert build(CsvLogger, config.loggers["csv"], where, origin) == CsvLogger("a.csv", 2)
    again = recipe.with_name("config.toml")
    again.write_text(config.to_toml())
    assert load(again) == config
    config = load(recipe, flags("loggers.csv.evry=2"))
    error = refusal(lambda: build(CsvLogger, config.loggers["csv"], where, config.origin))
    assert error.message == "there is no setting loggers.csv.evry (from --set)" and "every" in error.hint
    recipe.write_text(RECIPE + "[loggers]\ncsv = 1")
    assert "loggers.csv = 1" in refusal(lambda: load(recipe)).message


def test_three_methods_of_one_name_and_one_called_like_a_label(recipe: Path) -> None:
    recipe.write_text(RECIPE + "".join(f'[[methods]]\nname = "{name}"\n' for name in ("lora-2", "lora", "lora")))
    found = [(method.name, method.label) for method in load(recipe).methods]
    assert found == [("lora", "lora"), ("lora-2", "lora-2"), ("lora", "lora-3"), ("lora", "lora-4")]


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: load(tmp_path / "no.toml")).message
    error = refusal(lambda: load(tmp_path))
    assert "is a folder" in error.message
    assert "--resume" in error.hint


def test_the_run_folder_is_named_and_numbered(recipe: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    bare = flags(tasks="cls,det", method="lora+ssf", schedule="sequential")
    assert load(None, bare).with_folder().output.dir == "runs/cls-det-lora-ssf-sequential"
    assert load(recipe).with_folder().output.dir == "runs/pets-cells"
    assert load(recipe, flags(out="there")).with_folder().output.dir == "there"
    (tmp_path / "runs/pets-cells").mkdir(parents=True)
    assert load(recipe).with_folder().output.dir == "runs/pets-cells-2"
    (tmp_path / "runs/pets-cells-2").mkdir()
    assert load(recipe).with_folder(resume=True).output.dir == "runs/pets-cells-2"
    assert load(recipe).with_folder().output.dir == "runs/pets-cells-3"


NAMES = st.text(string.ascii_lowercase + "_.'\" =é", min_size=1, max_size=6).filter(
    lambda name: name not in ("name", "type", "data", "scope")
)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(string.printable, max_size=8)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=4
)
SETTINGS = st.dictionaries(NAMES, VALUES, max_size=3)
METHODS = st.builds(lambda name, settings: {"name": name, **settings}, st.sampled_from(["lora", "ssf"]), SETTINGS)
TASKS = st.builds(
    lambda kind, settings: {"type": kind, "data": "folder:images", **settings},
    st.sampled_from(["cls", "det"]),
    SETTINGS,
)
TASK_NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,5}\Z").filter(lambda name: name != "shared")
RECIPES = st.fixed_dictionaries(
    {
        "methods": st.lists(METHODS, min_size=1, max_size=3),
        "tasks": st.dictionaries(TASK_NAMES, TASKS, min_size=1, max_size=3),
    },
    optional={
        "seed": st.integers(0, 9),
        "data_seed": st.integers(0, 9),
        "weights": st.just("w.pth"),
        "image_size": st.integers(1, 512) | st.lists(st.integers(1, 512), min_size=2, max_size=2),
        "schedule": SETTINGS,
        "balance": SETTINGS,
        "optimizer": st.fixed_dictionaries({}, optional={"lr": st.floats(1e-9, 10), "checkpointing": st.booleans()}),
        "output": st.fixed_dictionaries({}, optional={"save_every": st.integers(0, 99), "keep": st.just("best")}),
    },
)


@given(RECIPES)
def test_a_written_configuration_reads_back_the_same(tmp_path_factory, tree: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "recipe.toml").write_text(tomli_w.dumps(tree))
    config = load(folder / "recipe.toml")
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text(config.to_toml())
    again = load(folder / "run" / "config.toml")
    assert again == config
    assert again.to_toml() == config.to_toml()


def test_a_seed_that_was_not_given_follows_the_seed_in_a_written_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(load(None, flags(tasks="cls", method="lora", seed=1)).to_toml())
    assert load(path, flags(seed=2)).data_seed == 2


@dataclass
class Plain:
    about: ClassVar[str] = "not a setting"
    rank: int
    alpha: float = 1.0
    scope: Literal["shared", "task"] = "shared"
    kernel: tuple[int, ...] = (3, 3)
    head_config: dict[str, Any] = field(default_factory=dict)
    name: str | None = None

    def __post_init__(self) -> None:
        if self.rank == 0:
            raise UsageError("rank = 0 trains nothing")


def test_build_makes_an_instance_of_strict_types() -> None:
    made = build(Plain, {"rank": 2, "alpha": 3, "kernel": [1], "head": {"width": 8}})
    assert made == Plain(2, 3.0, "shared", (1,), {"width": 8})
    assert isinstance(made.alpha, float)


@dataclass
class Shaped:
    """Of what no recipe can hold."""

    shape: Callable[[float], float] = abs
    kernel: nn.Module | None = None
    sizes: tuple[Count, ...] = (3,)


def test_an_instance_is_held_to_what_plain_values_can_say() -> None:
    for made in (Shaped(), Shaped(math.sqrt), Shaped(kernel=nn.Identity()), Shaped(sizes=(1, 2))):
        check(made, "shaped")
    error = refusal(lambda: check(Shaped(math.sqrt, sizes=(1, 0)), "shaped"))
    assert error.message == "shaped.sizes = [1, 0] does not fit: it should be greater than or equal to 1"
    assert error.hint == "shaped.sizes takes a list, each a whole number of at least 1; the default is [3]"


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({}, "methods.plain.rank is missing", "takes a whole number"),
        ({"rank": "2"}, 'methods.plain.rank = "2" (from here)', "takes a whole number"),
        ({"rank": 2.0}, "methods.plain.rank = 2.0", "a whole number"),
        ({"rank": True}, "methods.plain.rank = true", "a whole number"),
        ({"rank": 2, "alpha": "x"}, "methods.plain.alpha", "takes a number; the default is 1.0"),
        ({"rank": 2, "scope": "all"}, 'methods.plain.scope = "all"', "There is: shared, task"),
        ({"rank": 2, "kernel": ["x"]}, "methods.plain.kernel", "a list, each a whole number"),
        ({"rank": 2, "head": 3}, "methods.plain.head = 3", "takes a table"),
        ({"rank": 2, "name": 3}, "methods.plain.name = 3", "takes a text"),
        ({"rannk": 2}, "there is no setting methods.plain.rannk (from here)", 'did you mean "rank"?'),
        ({"rank": 2, "about": "x"}, "there is no setting methods.plain.about", "There is: alpha"),
        ({"rank": 0}, "rank = 0 trains nothing", ""),
    ],
)  # fmt: skip
def test_build_refuses(settings: dict[str, Any], message: str, hint: str) -> None:
    error = refusal(lambda: build(Plain, settings, "methods.plain", lambda key: "here"))
    assert message in error.message
    assert hint in error.hint


def test_no_message_ends_in_a_full_stop_or_spans_lines() -> None:
    error = refusal(lambda: load(None, flags("optimizer.lr=fast", tasks="cls", method="lora")))
    assert re.fullmatch(r"[^\n]+[^.\n]", error.message)


def test_configurations_compare_by_value_not_by_origin() -> None:
    assert Config(origins={"seed": "--seed"}) == Config()
