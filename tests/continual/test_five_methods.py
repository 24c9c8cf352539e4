"""Five continual methods, each one short class and its routine, pass the kit and learn digits class by class.

They are trained through a `Session`, resumed in the second stage, continued by another run, evaluated, and loaded.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from support import continual_methods
from support.continual_methods import METHODS, Consolidation
from support.training_toy import tiny

import mtpeft
from mtpeft.api import Routine, Update, UsageError
from mtpeft.config import Config, Overrides, load
from mtpeft.files import read_json
from mtpeft.peft.host import Host
from mtpeft.peft.store import read_adapter
from mtpeft.testing import Check, parametrize_with_checks
from mtpeft.training.evaluate import evaluate
from mtpeft.training.session import Session
from mtpeft.training.setup import open_run

LINES = {
    "prompt-pool": "prompt-pool",
    "random-projection": "random-projection",
    "isolated-ensemble": "isolated-ensemble@task",
    "consolidation": "toy@shared+consolidation",
    "replay": "toy@shared+replay",
    "dark": "toy@shared+replay",
}
"""What stands behind ``--method``; a regulariser and replay go with something that trains."""
DARK = ("methods.replay.dark=0.5", "methods.replay.bytes=40000")
OF_THE_FIVE = pytest.mark.parametrize("name", LINES)


def digits(folder: Path, name: str, *settings: str, tasks: str = "cls", **flags: Any) -> Config:
    """Four digits in two stages of three updates, on the tiny backbone."""
    own = ["tasks.cls.classes=['0', '1', '2', '3']", "tasks.cls.split=2"] if tasks == "cls" else []
    own += [f"tasks.{task}.samples=24" for task in {part.partition("=")[0] for part in tasks.split(",")}]
    line = {"--tasks": tasks, "--method": LINES[name], "--backbone": "tiny", "--schedule": "sequential", "--steps": 3}
    given = [*own, *(DARK if name == "dark" else ()), *settings]
    return load(None, Overrides(line | {"--out": str(folder), "--device": "cpu"} | flags, given))


def trained(config: Config, source: Path | None = None) -> Session:
    session = Session.start(config, source=source)
    session.train()
    return session


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(runs: Path, name: str) -> Path:
    """The uninterrupted run of a method, trained once."""
    if not (runs / name).exists():
        trained(digits(runs / name, name))
    return runs / name


@parametrize_with_checks(list(METHODS.values()), ["vit"], slow=False)
def test_it_passes_the_kit(check: Check) -> None:
    check()


def test_each_is_about_sixty_lines_of_the_api_alone() -> None:
    source = inspect.getsource(continual_methods)
    foreign = [line for line in source.splitlines() if line.startswith(("from mtpeft", "import mtpeft"))]
    assert foreign == ["from mtpeft.api import ("]
    sections = source.split("\nMETHODS")[0].split("\n# --- ")[1:]
    assert len(sections) == len(METHODS)
    for title, *lines in (section.splitlines() for section in sections):
        assert sum(bool(line.strip()) for line in lines) <= 66, title


@OF_THE_FIVE
def test_stopped_in_the_second_stage_it_ends_with_the_same_bits(name: str, whole: Path, tmp_path: Path) -> None:
    session = Session.start(digits(tmp_path / "stopped", name))
    after = session.loop.after

    def stopping(event: Any) -> None:
        after(event)
        if isinstance(event, Update) and (session.loop.at.stage, session.loop.at.step) == (1, 1):
            raise KeyboardInterrupt

    session.loop.after = stopping
    with pytest.raises(KeyboardInterrupt):
        session.train()
    Session.resume(load(tmp_path / "stopped" / "config.toml")).train()
    files = {path.name: path.read_bytes() for path in (whole / "adapter").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "stopped" / "adapter").iterdir()} == files
    matrices = [read_json(folder / "results.json")["matrix"] for folder in (whole, tmp_path / "stopped")]
    assert matrices[0] == matrices[1]


@OF_THE_FIVE
def test_evaluated_again_it_scores_the_same(name: str, whole: Path) -> None:
    run, cells = open_run(whole), read_json(whole / "results.json")["matrix"]
    last = {cell["task"]: cell["value"] for cell in cells if cell["stage"] == 1}
    assert {task: evaluate(run, task, "test", batch_size=50).value for task in run.tasks} == last


@OF_THE_FIVE
def test_loaded_from_its_folder_it_predicts_the_same(name: str, whole: Path) -> None:
    ran, loaded = open_run(whole).host, mtpeft.load(whole / "adapter", tiny()).eval()
    images = torch.randn(5, 3, 32, 32)
    for task in ran.tasks:
        assert torch.equal(loaded.predict(images, task), ran.predict(images, task))
        assert ran.predict(images, task).shape == (5, 4)


@OF_THE_FIVE
def test_another_run_goes_on_with_what_it_kept(name: str, whole: Path, tmp_path: Path) -> None:
    own = ("tasks.more.classes=['4', '5']", "tasks.more.group=cls")
    session = Session.start(digits(tmp_path / "next", name, *own, tasks="more=cls"), source=whole)
    before = read_adapter(whole / "adapter")
    for method, routine in session.run.host.routines.items():
        kept = routine.kept()
        assert kept.keys() == before.kept.get(method, {}).keys() or not before.kept.get(method)
        assert all(torch.equal(kept[key], tensor) for key, tensor in before.kept.get(method, {}).items())
    matrix = session.train()
    assert [len(stage) for stage in matrix.stages] == [1, 1, 1]
    assert session.run.host.head_of("cls-1").classes[-2:] == ("4", "5")
    after = read_adapter(tmp_path / "next" / "adapter")
    for task in ("cls-1", "cls-2"):
        assert task in after.frozen
        assert all(torch.equal(after.owners[task][key], tensor) for key, tensor in before.owners[task].items())


@pytest.mark.parametrize("name", ["prompt-pool", "random-projection", "isolated-ensemble", "replay"])
def test_a_task_that_it_does_not_serve_is_refused_before_training(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f'task "found" is of type det, and {name} serves cls'):
        Session.start(digits(tmp_path / "run", name, tasks="a=cls,found=det"))
    assert not (tmp_path / "run").exists()


def test_replay_keeps_within_its_budget_and_reports_it(tmp_path: Path) -> None:
    session = trained(digits(tmp_path / "run", "dark"))
    memory, costs = session.run.host.routines["replay"].memory, session.run.matrix.costs
    assert 0 < memory.bytes <= 40_000 and {task for task, _ in memory} == {"cls-1", "cls-2"}
    assert costs.memory_bytes == memory.bytes
    assert costs.statistics_bytes == session.run.host.count().buffers + 8  # how many were met


def test_an_ensemble_counts_its_passes(runs: Path, tmp_path: Path) -> None:
    session = trained(digits(tmp_path / "run", "isolated-ensemble"))
    assert session.run.matrix.costs.inference_passes == 2


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of the host at each call of its door: training or not."""
    seen: list[bool] = []
    answers = Host.answers
    monkeypatch.setattr(Host, "answers", lambda host, *given: seen.append(host.training) or answers(host, *given))
    return seen


def test_a_stage_in_which_nothing_trains_runs_no_forward_pass(modes: list[bool], tmp_path: Path) -> None:
    trained(digits(tmp_path / "run", "random-projection"))
    assert modes == []  # evaluation asks `Host.predict`


def test_unless_a_routine_watches(modes: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continual_methods.ClosedForm, "watches", True)
    trained(digits(tmp_path / "run", "random-projection"))
    assert sum(modes) == 6


def noting(calls: list[tuple[str, bool]], name: str) -> Any:
    """A hook that notes its name and the host's mode."""
    hook = getattr(Routine, name)

    def note(self: Any, context: Any, *args: Any) -> Any:
        calls.append((name, context.host.training))
        return hook(self, context, *args)

    return note


IN_EVALUATION = ("calibrate", "begin_stage", "settle", "end_stage")
IN_TRAINING = ("begin_update", "adjust", "penalty", "after_backward", "after_step")


def test_a_run_calls_the_hooks_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bool]] = []
    hooks = {name: noting(calls, name) for name in (*IN_EVALUATION, *IN_TRAINING)}
    recording = type("Recording", (Routine,), hooks)
    monkeypatch.setattr(Consolidation, "routine", lambda self: recording(self))
    trained(digits(tmp_path / "run", "consolidation"))
    stage = ["calibrate", "begin_stage", *IN_TRAINING * 3, "settle", "end_stage", "settle"]
    assert [name for name, _ in calls] == stage * 2
    assert all(training is (name in IN_TRAINING) for name, training in calls)
