"""``mtpeft bench``: what is chosen on validation, what may see the test split, and what the table says."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from threading import Barrier

import pytest
from PIL import Image

from mtpeft.bench.identity import portable, remember, remember_data
from mtpeft.bench.processes import Processes, run
from mtpeft.bench.runner import Comparison
from mtpeft.bench.table import comparable, markdown, ppt, rows, table
from mtpeft.bench.trials import Record, Records, Trial
from mtpeft.cli import main
from mtpeft.errors import MtpeftError, UsageError
from mtpeft.training.setup import open_run

PLAN = """
[tasks.cls]
type = "cls"
data = "folder:pets"
samples = 8
[tasks.other]
type = "cls"
data = "folder:pets"
classes = ["cat", "dog"]
[schedule]
name = "joint"
steps = 1
[bench]
methods = ["bitfit", "linear-probe"]
learning_rates = [1e-3, 1e-2]
seeds = [0, 1]
top = 1
groups = { digits = ["cls", "other"] }
relative_to = ["linear-probe"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "pets.toml"
    path.write_text(PLAN)
    for split, label, number in product(("train", "val", "test"), ("cat", "dog", "emu"), range(4)):
        image = tmp_path / "pets" / split / label / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (60 * number, len(split), 0)).save(image)
    return path


def comparison(recipe: Path, *settings: str) -> Comparison:
    (recipe.parent / "out").mkdir(exist_ok=True)
    return Comparison(recipe, recipe.parent / "out", settings, say=lambda text: None)


def costs(parts: int = 100, head: int = 10) -> dict:
    return {"parameters": {"shared": parts, "tasks": {}, "heads": {"cls": head}, "backbone": 1000}}


def made(plan: Comparison, method: str, task: str, val: dict[float, float], test: float, seconds: float = 2.0) -> None:
    """Records as if the trials had been made."""
    for trial in plan.candidates(method, task):
        plan.records.add(trial, Record({task: val[trial.lr]}, costs(), seconds, 1000))
    plan.records.add(plan.test(method, task, 0), Record({task: test}))


def fill(plan: Comparison) -> None:
    for task in plan.tasks:
        made(plan, "bitfit", task, {1e-3: 50.0, 1e-2: 60.0}, 58.0, seconds=4.0)
        made(plan, "linear-probe", task, {1e-3: 55.0, 1e-2: 40.0}, 90.0)


def test_validation_alone_chooses(recipe: Path) -> None:
    plan = comparison(recipe)
    fill(plan)
    assert plan.test("bitfit", "cls", 0) == Trial("bitfit", "cls", 1e-2, 0, "test")
    assert plan.test("linear-probe", "cls", 0).lr == 1e-3
    assert plan.leading() == ["bitfit"], "linear-probe is better on test only"


def test_a_lower_score_is_chosen_where_lower_is_better(recipe: Path) -> None:
    plan = comparison(recipe)
    fill(plan)
    plan.signs["cls"] = -1
    assert plan.test("bitfit", "cls", 0).lr == 1e-3


def test_an_undefined_or_failed_trial_is_never_chosen(recipe: Path) -> None:
    plan = comparison(recipe)
    low, high = plan.candidates("bitfit", "cls")
    plan.records.add(low, Record({"cls": 1.0}, costs()))
    assert plan.test("bitfit", "cls", 0) is None, "not all were tried"
    plan.records.add(high, Record({"cls": None}, costs()))
    assert plan.test("bitfit", "cls", 0).lr == low.lr
    plan.records.add(low, Record(error="the loss is nan"))
    plan.records.add(high, Record(error="the loss is nan"))
    assert plan.test("bitfit", "cls", 0) is None
    assert "bitfit on cls: the loss is nan" in markdown(plan)


def test_the_row(recipe: Path) -> None:
    plan = comparison(recipe)
    fill(plan)
    plan.records.add(plan.test("bitfit", "cls", 1), Record({"cls": 62.0}, costs()))
    bitfit, probe = rows(plan)
    assert bitfit.scores == {"cls": [58.0, 62.0], "other": [58.0]}
    assert bitfit.mean == bitfit.groups["digits"] == bitfit.mean_of_groups == 59.0 and probe.mean == 90.0
    assert (bitfit.parts, bitfit.head, bitfit.memory) == (100, 10, 1000)
    assert bitfit.ppt == pytest.approx(0.59 * (1 - 4.3429e-6), rel=1e-9)
    assert bitfit.time_ratio == {"linear-probe": 2.0} and bitfit.memory_ratio == {"linear-probe": 1.0}
    assert probe.delta == {"linear-probe": 0.0}
    assert bitfit.delta["linear-probe"] == pytest.approx(-100 * (30 / 90 + 32 / 90) / 2)
    drawn = table(plan, [bitfit])
    shown = dict(zip(drawn.headings, drawn.rows[0], strict=True))
    assert shown["cls"] == "60.00 ± 2.83" and shown["delta to linear-probe"] == "-34.4 %"
    assert plan.missing() == ["bitfit, seed 1: other"]


@pytest.mark.parametrize(
    ("parameters", "factor"),
    [(0, 1.0), (36_864, 0.9984), (294_912, 0.9875), (1e6, 0.9595), (1e7, 0.7401), (85_798_656, 0.3748)],
)
def test_ppt_is_the_published_one(parameters: float, factor: float) -> None:
    assert ppt(0.5, parameters) == pytest.approx(0.5 * factor, abs=3e-5)


def test_metrics_of_several_units_have_no_mean(recipe: Path) -> None:
    assert comparable(comparison(recipe))
    recipe.write_text(PLAN + '[tasks.far]\ntype = "depth"\n')
    plan = comparison(recipe)
    fill(plan)
    assert not comparable(plan)
    bitfit, probe = rows(plan)
    assert [bitfit.mean, bitfit.ppt, probe.mean, probe.ppt] == [None] * 4
    gains = [(58 - 90) / 90, (58 - 90) / 90, (90 - 58) / 90]  # of depth, less is better
    assert bitfit.delta["linear-probe"] == pytest.approx(100 * sum(gains) / 3)
    plan.records.add(plan.test("linear-probe", "far", 0), Record({"far": 0.0}))
    assert rows(plan)[0].delta == {"linear-probe": None}


def test_what_failed_is_not_said_to_be_missing(recipe: Path) -> None:
    """And it does not keep the further seeds of the others from being asked for."""
    plan = comparison(recipe)
    for method, task in product(plan.methods, plan.tasks):
        failed = (method, task) == ("bitfit", "other")
        for trial in plan.candidates(method, task):
            plan.records.add(trial, Record(error="the loss is nan") if failed else Record({task: 50.0}))
    assert plan.missing() == ["bitfit, seed 0: cls", "linear-probe, seed 0: cls, other"]
    for method, task in product(plan.methods, plan.tasks):
        if (tested := plan.test(method, task, 0)) is not None:
            plan.records.add(tested, Record({task: 50.0}))
    assert plan.missing() == ["linear-probe, seed 1: cls, other"]


def test_a_method_that_makes_no_sense_is_a_record_and_a_missing_file_the_end(recipe: Path) -> None:
    """In a process of its own: what is the method's fault is kept, what is not would be kept for every trial."""
    settings = ["backbone=resnet18", "weights=random", 'bench.methods=["vpt-deep"]', "bench.relative_to=[]"]
    plan, processes = comparison(recipe, *settings), Processes(1)
    trial = plan.candidates("vpt-deep", "cls")[0]
    assert "no site of this backbone" in processes.run(plan.config_of(trial), None).error
    settings[1] = "weights=nowhere.safetensors"
    plan = Comparison(recipe, recipe.parent / "other", settings)
    with pytest.raises(MtpeftError, match=r"nowhere\.safetensors"):
        processes.run(plan.config_of(trial), None)
    processes.stop()
    with pytest.raises(KeyboardInterrupt):
        processes.run(plan.config_of(trial), None)


def test_settings_of_a_trial(recipe: Path) -> None:
    plan = comparison(recipe, "bench.refit=true", "bench.rate_factors={bitfit = 0.1}")
    trial = plan.candidates("bitfit", "cls")[0]
    config = plan.config_of(trial)
    assert (config.evaluate_on, config.train_on, config.optimizer.lr) == ("val", ("train",), 1e-4)
    assert list(config.tasks) == ["cls"] and config.methods[0].name == "bitfit"
    assert config.optimizer.head_lr == 1e-3, "the factor is for what was trained before"
    config = plan.config_of(Trial("bitfit", "cls", 1e-4, 3, "test"))
    assert (config.evaluate_on, config.train_on, config.seed) == ("test", ("train", "val"), 3)
    plan = comparison(recipe, "bench.rate_factors={bitfit = 0.1}", "optimizer.head_lr=0.5")
    assert plan.config_of(trial).optimizer.head_lr == 0.5


def test_settings_of_compared_methods(recipe: Path) -> None:
    """A method that ``bench.methods`` names needs no entry of its own; each trial trains what it names, and no more."""
    settings = ["methods.lora.rank=2", 'bench.methods=["lora", "bitfit+lora@task", "linear-probe"]']
    plan = comparison(recipe, *settings)
    alone, both, probe = (plan.config_of(plan.candidates(method, "cls")[0]).methods for method in plan.methods)
    assert [(method.name, method.settings) for method in alone] == [("lora", {"rank": 2})]
    assert [method.settings for method in both] == [{}, {"rank": 2, "scope": "task"}]
    assert [method.name for method in probe] == ["linear-probe"]
    kept = portable(plan.config, recipe.parent)
    assert 'name = "lora", rank = 2' in kept and portable(comparison(recipe).config, recipe.parent) != kept
    assert (
        comparison(recipe, "methods.lora.rank=2", 'bench.methods=["*"]', "bench.top=0").config.methods[0].name == "lora"
    )


def test_a_method_with_two_sets_of_settings(recipe: Path) -> None:
    """The second is trained, kept and opened again as any other."""
    two = '[[methods]]\nname = "lora"\nrank = 2\n[[methods]]\nname = "lora"\nrank = 4\n'
    recipe.write_text(two + PLAN)
    settings = ['bench.methods=["lora", "lora-2"]', "bench.relative_to=[]", "methods.lora-2.alpha=1.0", "image_size=32"]
    plan = comparison(recipe, *settings)
    first, second = (plan.config_of(plan.candidates(method, "cls")[0]) for method in plan.methods)
    assert [config.methods[0].settings for config in (first, second)] == [{"rank": 2}, {"rank": 4, "alpha": 1.0}]
    run(second)
    assert not run(replace(second, evaluate_on="test"), Path(second.output.dir)).error


def test_what_differs_between_trainings_is_no_setting(recipe: Path) -> None:
    """A trial's folder is emptied before it is trained: it must be the comparison's own, whatever a setting says."""
    for setting in ("output.dir=precious", "seed=3", "evaluate_on=test", "optimizer.lr=1e-3"):
        with pytest.raises(UsageError, match=f"--set {setting.partition('=')[0]} is not for mtpeft bench") as caught:
            comparison(recipe, setting)
        assert caught.value.hint
    own = ["bench.learning_rates=[]", "bench.top=0", "optimizer.lr=0.5"]
    plan = comparison(recipe, *own)
    config = plan.config_of(plan.test("bitfit", "cls", 1))
    assert (config.optimizer.lr, config.seed, Path(config.output.dir).parts[-2]) == (0.5, 1, "cls")


BAD = [
    ("methods.lorra.rank=2", 'no "lorra" among the methods', "bitfit, linear-probe"),
    ("methods.bitfit.rank=2", "there is no setting methods.bitfit.rank .from --set.", "There is"),
    ('bench.methods=["linear-probe", "lorra"]', "lorra", "lora"),
    ("bench.methods=[]", "names no method", "all"),
    ('bench.methods=["lora","lora"]', "twice", "once"),
    ('bench.groups={a = ["clss"]}', "bench.groups.a names a task", 'did you mean "cls"'),
    ('bench.relative_to=["lora"]', "which is not compared", "There is"),
    ("bench.learning_rates=[]", "bench.top needs validation", "learning_rates"),
    ("bench.seeds=[]", "bench.seeds", "list"),
]


@pytest.mark.parametrize(("setting", "message", "hint"), BAD)
def test_what_cannot_be_compared(recipe: Path, setting: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        comparison(recipe, setting)
    assert hint in caught.value.hint


def test_records_of_another_plan_are_not_mixed_in(recipe: Path) -> None:
    plan = comparison(recipe)
    remember(plan.config, plan.folder, recipe)
    remember(comparison(recipe, "bench.seeds=[0, 1, 2]").config, plan.folder, recipe)  # more of the same is welcome
    with pytest.raises(MtpeftError, match=r"another plan: schedule\.steps is not what it was"):
        remember(comparison(recipe, "schedule.steps=2").config, plan.folder, recipe)


def test_a_record_is_of_the_whole_configuration_that_it_was_made_with(recipe: Path, monkeypatch) -> None:
    """Also of settings that no plan.toml and no name of a trial has: ``refit``, and factors of rates that collide."""
    monkeypatch.setattr(Processes, "run", lambda self, config, *rest: Record(dict.fromkeys(config.tasks, 50.0)))
    one = ['bench.methods=["bitfit"]', "bench.relative_to=[]", "bench.seeds=[0]"]
    plan = comparison(recipe, *one)
    plan.run(1, 1)
    count, tested = len(plan.records.path.read_text().splitlines()), plan.test("bitfit", "cls", 0)
    assert plan.missing() == comparison(recipe, *one).missing() == [] and count == 2 * (2 + 1)
    refit = comparison(recipe, *one, "bench.refit=true")
    assert all(refit.record(trial) for trial in refit.candidates("bitfit", "cls")), "they do not depend on it"
    assert refit.record(tested) is None and plan.record(tested) is not None
    other = comparison(recipe, *one, "bench.rate_factors={bitfit = 0.1}", "bench.learning_rates=[1e-2, 1e-1]")
    assert other.candidates("bitfit", "cls") == plan.candidates("bitfit", "cls")
    assert not any(other.record(trial) for trial in other.candidates("bitfit", "cls")), "heads learn ten times as fast"
    assert other.config_of(tested).output.dir != plan.config_of(tested).output.dir
    refit.run(1, 1)
    assert len(refit.records.path.read_text().splitlines()) == count + 2
    assert comparison(recipe, *one).record(tested) is not None, "those of the first plan are still there"


def test_a_configuration_is_the_same_wherever_it_stands_and_however_it_is_said(recipe: Path, tmp_path: Path) -> None:
    def identity(at: Path, *settings: str) -> str:
        plan = Comparison(at, at.parent / "out", settings)
        return plan.identity(plan.candidates("bitfit", "cls")[0])

    first = identity(recipe)
    elsewhere = tmp_path / "elsewhere" / recipe.name
    shutil.copytree(recipe.parent / "pets", elsewhere.parent / "pets")
    elsewhere.write_text(PLAN)
    assert identity(elsewhere) == first
    assert identity(recipe, "optimizer.warmup=0.1", "workers=1") == first, "its default, and how samples are loaded"
    assert identity(recipe, "optimizer.warmup=0.2") != first
    assert identity(recipe, "methods.bitfit.blocks=0-1") != first


def test_a_record_without_a_configuration_counts_under_the_plan_beside_it(recipe: Path) -> None:
    """As those that were made before records had one; one that says its own goes before it."""
    plan = comparison(recipe)
    trial = plan.candidates("bitfit", "cls")[0]
    old = {"scores": {"cls": 50.0}, "costs": {}, "seconds": None, "memory_bytes": None, "over_stages": {}, "error": ""}
    plan.records.path.write_text(json.dumps({"trial": asdict(trial), **old}) + "\n")
    assert comparison(recipe).record(trial) == Record({"cls": 50.0})
    plan.records = Records(plan.records.path)
    plan.records.add(trial, Record({"cls": 60.0}, config=plan.identity(trial)))
    assert comparison(recipe).record(trial).scores == {"cls": 60.0}


def test_a_plan_of_an_older_version_lacks_what_is_new(recipe: Path) -> None:
    plan = comparison(recipe)
    remember(plan.config, plan.folder, recipe)
    path = plan.folder / "plan.toml"
    whole = path.read_text()
    path.write_text(whole.replace("warmup = 0.1\n", "").replace('normalization = "backbone"\n', ""))
    assert path.read_text() != whole
    remember(plan.config, plan.folder, recipe)
    assert path.read_text() == whole
    path.write_text(whole.replace("warmup = 0.1\n", "warmup = 0.2\n"))
    with pytest.raises(MtpeftError, match=r"another plan: optimizer\.warmup"):
        remember(plan.config, plan.folder, recipe)
    path.write_text("= 3")
    with pytest.raises(MtpeftError, match="cannot be read"):
        remember(plan.config, plan.folder, recipe)


VTAB = Path(__file__).parents[2] / "tasks" / "recipes" / "vtab-1k.toml"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["bccd", "pacs", "carparts", "camvid"])
def test_committed_records_are_still_those_of_their_recipe(name: str, tmp_path: Path) -> None:
    recipe, folder = VTAB.with_name(f"{name}.toml"), tmp_path / name
    folder.mkdir()
    for file in ("plan.toml", "records.jsonl"):
        shutil.copy(RESULTS / "real_sets" / name / file, folder)
    plan = Comparison(recipe, folder, ["bench.seeds=[0]"])
    remember(plan.config, folder, recipe)
    assert len(rows(plan)) == 4 and plan.missing() == []


def test_a_kept_plan_names_no_place_of_one_machine(recipe: Path) -> None:
    plan = comparison(recipe)
    remember(plan.config, plan.folder, recipe)
    kept = (plan.folder / "plan.toml").read_text()
    assert str(recipe.parent) not in kept and kept.count('data = "folder:pets"') == 2


def test_records_of_other_data_are_not_mixed_in(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = comparison(recipe)
    remember_data(plan.config, plan.folder)
    remember_data(plan.config, plan.folder)
    image = recipe.parent / "pets/test/dog/1.png"
    Image.new("RGB", (80, 80), (9, 9, 9)).save(image)
    with pytest.raises(MtpeftError, match=r'other data: the test split of "cls" has changed') as caught:
        remember_data(plan.config, plan.folder)
    assert "--out" in caught.value.hint
    assert main(["bench", str(recipe), "--out", str(plan.folder)]) == 1
    assert "other data" in capsys.readouterr().err and not plan.records.path.exists()
    assert main(["bench", str(recipe), "--out", str(plan.folder), "--table"]) == 0


SEQUENCE = [
    "tasks.cls.split=3", "tasks.cls.samples=0", "schedule.name=sequential", "bench.together=true",
    'bench.groups.digits=["cls-1", "cls-2", "cls-3"]',
]  # fmt: skip
"""The first task as three of one class each; the other stays as it is."""


def test_a_sequence_is_compared_by_its_parts_and_over_its_stages(recipe: Path) -> None:
    settings = [*SEQUENCE, "bench.learning_rates=[1e-3]", "bench.refit=true", "image_size=32"]
    plan = comparison(recipe, *settings)
    parts = ["cls-1", "cls-2", "cls-3"]
    assert list(plan.config.tasks) == [*parts, "other"] and plan.tasks == ("all",)
    [trial] = plan.candidates("linear-probe", "all")
    plan.records.add(trial, Record(dict.fromkeys(plan.config.tasks, 50.0)))
    tested = plan.test("linear-probe", "all", 0)
    record = run(plan.config_of(tested))
    assert list(record.scores) == [*parts, "other"]
    assert set(record.over_stages) == {"average_incremental", "forgetting"}
    plan.records.add(tested, replace(record, over_stages={"average_incremental": 70.0, "forgetting": None}))
    [row] = rows(plan)
    assert row.over_stages == {"average_incremental": [70.0]} and set(row.scores) == set(plan.config.tasks)
    drawn = table(plan, [row])
    assert dict(zip(drawn.headings, drawn.rows[0], strict=True))["average incremental"] == "70.00"


FULL = (
    68.9, 87.7, 64.3, 97.2, 86.9, 87.4, 38.8,
    79.7, 95.7, 84.2, 73.9,
    56.3, 58.6, 41.7, 65.5, 57.5, 46.7, 25.7, 29.1,
)  # fmt: skip
"""Full fine-tuning as published for VTAB-1k (Jia et al., ECCV 2022), in the order of the tasks."""


def test_the_published_row_of_vtab_has_its_published_means(tmp_path: Path) -> None:
    plan = Comparison(VTAB, tmp_path, ['bench.methods=["full"]', "bench.relative_to=[]"])
    for task, score in zip(plan.tasks, FULL, strict=True):
        rates = {trial.lr: 50.0 for trial in plan.candidates("full", task)}
        assert min(rates) == 1e-5 and max(rates) == 1e-3
        made(plan, "full", task, rates, score)
    [row] = rows(plan)
    assert (len(row.scores), list(row.groups)) == (19, ["natural", "specialized", "structured"])
    assert row.mean == pytest.approx(65.57, abs=0.005) and row.mean_of_groups == pytest.approx(68.97, abs=0.005)
    headings = table(plan, [row]).headings
    assert headings[20:25] == ["natural", "specialized", "structured", "mean of groups", "mean of 19"]


def test_end_to_end(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every trial once; a run that chose never opened the test split; a second call trains nothing."""
    arguments = ["bench", str(recipe), "--out", str(recipe.parent / "out"), "--set", 'bench.methods=["linear-probe"]']
    arguments += ["--set", 'tasks.other.classes=["emu"]', "--set", 'tasks.other.degenerate="allow"']
    arguments += ["--set", "bench.learning_rates=[1e-3]", "--json"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    data = json.loads(first.out)
    assert not data["missing"] and not data["failed"]
    assert [len(values) for values in data["rows"][0]["scores"].values()] == [2, 2]
    assert first.err.count("linear-probe on") == 2 * (1 + 1 + 1)
    assert main(arguments) == 0
    second = capsys.readouterr()
    assert second.err == "" and json.loads(second.out) == data
    assert not (recipe.parent / "out/work/linear-probe/cls").exists()


def test_a_run_that_chooses_cannot_open_the_test_split(recipe: Path) -> None:
    out = recipe.parent / "chosen"
    assert main(["train", str(recipe), "--method", "linear-probe", "--set", "evaluate_on=val", "--out", str(out)]) == 0
    assert "test" not in json.loads((out / "manifest.json").read_text())["data"]["cls"]
    with pytest.raises(UsageError, match="does not open test"):
        open_run(out).dataset("cls", "test")
    assert len(open_run(out, evaluate_on="test").dataset("cls", "test")) > 0
    assert main(["eval", str(out)]) == 2


def test_a_method_that_breaks_is_a_row_that_says_so(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = comparison(recipe, 'bench.methods=["vpt-deep"]', "bench.relative_to=[]")
    monkeypatch.setattr("mtpeft.bench.runner.Processes.run", lambda *a: Record(error="vpt-deep needs tokens"))
    plan.run(1, 1)
    assert plan.record(plan.candidates("vpt-deep", "cls")[0]).error
    assert "vpt-deep on cls, other: vpt-deep needs tokens" in markdown(plan)


def test_records_survive_a_cut_off_line_and_say_where_they_are_damaged(tmp_path: Path) -> None:
    path, trial = tmp_path / "records.jsonl", Trial("lora", "cls", 1e-3, 0, "val")
    Records(path).add(trial, Record({"cls": 50.0}))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    again = Records(path)
    assert again.made == {trial: {"": Record({"cls": 50.0})}}
    again.add(Trial("lora", "cls", 1e-3, 1, "test"), Record(error="nan"))
    assert len(Records(path).made) == 2 and path.read_bytes().startswith(whole)
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(MtpeftError, match="line 1 is damaged"):
        Records(path)


def test_pictures_are_of_what_is_tested_from_the_first_seed(recipe: Path) -> None:
    plan = Comparison(recipe, recipe.parent / "out", say=lambda text: None, pictures=True)
    plan.run(1, 1)
    found = sorted(file.relative_to(plan.folder).as_posix() for file in (plan.folder / "pictures").rglob("*.*"))
    assert found == [f"pictures/{method}/{task}/{task}.jpg" for method in plan.methods for task in plan.tasks]


def test_trials_of_one_method_run_side_by_side_and_the_test_after_them(recipe: Path, monkeypatch) -> None:
    """Two workers on one method and task: both rates are tried at once, then what was chosen is tested."""
    plan = comparison(recipe, 'bench.methods=["bitfit"]', "bench.relative_to=[]", "bench.seeds=[0]")
    both, made = Barrier(2, timeout=60), []

    def run(self: Processes, config, trained, pictures) -> Record:
        if config.evaluate_on == "val":
            both.wait()  # neither goes on before the other has begun
        made.append((next(iter(config.tasks)), config.evaluate_on, config.optimizer.lr))
        return Record(dict.fromkeys(config.tasks, 100 * config.optimizer.lr))

    monkeypatch.setattr(Processes, "run", run)
    plan.run(2, 1)
    for task in plan.tasks:
        assert [split for name, split, _ in made if name == task] == ["val", "val", "test"]
    assert [lr for _, split, lr in made if split == "test"] == [1e-2, 1e-2] and plan.missing() == []
