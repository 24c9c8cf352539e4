from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import killed
from support.training_toy import config

from mtpeft import files
from mtpeft.errors import MtpeftError, UsageError
from mtpeft.schedule import Evaluate
from mtpeft.training import checkpoint
from mtpeft.training.session import Session

TESTS = Path(__file__).parents[1]


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's adapter, by file and name."""
    files = sorted((folder / "adapter").glob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def log(folder: Path) -> list[dict]:
    """A run's log without what was measured."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "measured"} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    one, other = saved(first), saved(second)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert log(first) == log(second)
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert results[0]["matrix"] == results[1]["matrix"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    from support.training_toy import register

    from mtpeft import plugins

    register()
    folder = tmp_path_factory.mktemp("whole") / "run"
    Session.start(config(folder, *killed.SETTINGS, **killed.CHOICES)).train()
    plugins.reset()
    return folder


def test_killed_again_and_again_gives_the_same_bits(tmp_path, uninterrupted):
    command = [sys.executable, "-m", "support.killed", str(tmp_path / "run"), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 8
    assert_same_run(tmp_path / "run", uninterrupted)


def interrupted(folder: Path, after: int, *settings: str, **choices: str) -> Session:
    """A run in which Ctrl-C is pressed while update ``after`` is made."""
    session = Session.start(config(folder, *settings, **choices))
    batch, count = session.loop.batch, iter(range(after, -1, -1))

    def pressed(event):
        if next(count) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        batch(event)

    session.loop.batch = pressed
    with pytest.raises(KeyboardInterrupt):
        session.train()
    return session


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A suite that was started in the background inherits a Ctrl-C that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("after", [0, 4, 9])
def test_ctrl_c_finishes_the_update_and_saves(tmp_path, uninterrupted, after):
    session = interrupted(tmp_path / "run", after, *killed.SETTINGS, **killed.CHOICES)
    assert session.loop.at.updates == after + 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    Session.resume(config(tmp_path / "run", *killed.SETTINGS, **killed.CHOICES)).train()
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("after", [1, 3])
def test_what_trains_may_change_within_a_stage(tmp_path, after):
    for name in ("whole", "cut"):
        folder = tmp_path / name
        if name == "cut":
            interrupted(folder, after, method="shrinking@task")
        make = Session.resume if folder.exists() else Session.start
        make(config(folder, method="shrinking@task")).train()
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert {tensor.shape[0] for name, tensor in saved(tmp_path / "cut").items() if name.endswith("/A")} == {1}


def test_ctrl_c_in_an_evaluation_stops_there(tmp_path, uninterrupted, monkeypatch):
    from mtpeft.training import evaluate as module

    predict, calls = module.predict, []

    def pressed(*given):
        calls.append(given)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return predict(*given)

    monkeypatch.setattr(module, "predict", pressed)
    with pytest.raises(KeyboardInterrupt):
        Session.start(config(tmp_path / "run", *killed.SETTINGS, **killed.CHOICES)).train()
    assert len(calls) == 5
    Session.resume(config(tmp_path / "run", *killed.SETTINGS, **killed.CHOICES)).train()
    assert_same_run(tmp_path / "run", uninterrupted)


def test_what_a_balancer_draws_goes_on_behind_the_boundary_of_a_stage(tmp_path, monkeypatch):
    settings = ["balance.name=rlw", "schedule.stages=[['a','b'],['c','d']]"]
    build = [config(tmp_path / name, *settings, tasks="a=colours,b=colours,c=colours,d=colours") for name in "xy"]
    Session.start(build[0]).train()
    session = Session.start(build[1])
    after = session.loop.after

    def pressed(event):
        session.signals.wanted = session.signals.wanted or 2 * (isinstance(event, Evaluate) and event.final)
        after(event)

    session.loop.after = pressed
    with pytest.raises(KeyboardInterrupt):
        session.train()
    assert not session.loop.at.open and session.loop.at.stage == 0
    Session.resume(build[1]).train()
    assert_same_run(tmp_path / "x", tmp_path / "y")


def test_a_finished_run_resumes_to_itself(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted, tmp_path / "run")
    again = replace(config(tmp_path / "run", *killed.SETTINGS, **killed.CHOICES))
    Session.resume(again).train()
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_run_folder_that_exists_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine").write_text("precious")
    with pytest.raises(UsageError, match="exists already, and nothing is overwritten") as caught:
        Session.start(config(folder))
    assert f"--resume --out {folder}" in caught.value.hint
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_what_is_not_there_cannot_be_resumed(tmp_path):
    with pytest.raises(MtpeftError, match="holds no saved state"):
        Session.resume(config(tmp_path / "run"))


def state_files(folder: Path) -> list[Path]:
    return sorted(file for file in checkpoint.current_state(folder / "state").rglob("*") if file.is_file())


def test_every_truncated_or_missing_state_file_is_named(tmp_path, uninterrupted):
    for number in range(len(state_files(uninterrupted))):
        folder = tmp_path / str(number)
        shutil.copytree(uninterrupted, folder)
        file = state_files(folder)[number]
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(MtpeftError, match=f"{file.name}. is damaged or truncated, so this run cannot be resumed"):
            Session.resume(config(folder, *killed.SETTINGS, **killed.CHOICES))
        file.unlink()
        with pytest.raises(MtpeftError, match=f"{file.name}. is gone"):
            checkpoint.current_state(folder / "state")


def test_a_damaged_pointer_is_one_sentence(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "state" / "current.json").write_text('{"folder": ')
    with pytest.raises(MtpeftError, match=r"current.json. cannot be read"):
        Session.resume(config(tmp_path / "run", *killed.SETTINGS, **killed.CHOICES))


def test_nothing_in_a_run_is_a_pickle(uninterrupted):
    kinds = {path.suffix for path in uninterrupted.rglob("*") if path.is_file()}
    assert kinds == {".toml", ".json", ".jsonl", ".safetensors"}


@pytest.mark.parametrize("setting", ["schedule.steps=9", "seed=5", "tasks.a.count=30", "methods.toy.blocks=0"])
def test_resuming_changes_nothing_that_is_trained(tmp_path, uninterrupted, setting):
    shutil.copytree(uninterrupted, tmp_path / "run")
    with pytest.raises(UsageError, match="is not what the run"):
        Session.resume(config(tmp_path / "run", *killed.SETTINGS, setting, **killed.CHOICES))


def test_resuming_may_change_the_optimizer(tmp_path):
    session = interrupted(tmp_path / "run", 2)
    again = Session.resume(config(tmp_path / "run", "optimizer.lr=1e-5"))
    assert again.loop.stage.optimizer.param_groups[-1]["peak"] == 1e-5
    assert again.loop.at.updates == session.loop.at.updates == 3


@pytest.mark.parametrize("at", ["write_state", "write_json"])
def test_a_full_disk_is_one_sentence_and_the_state_before_stays(tmp_path, monkeypatch, at):
    session = interrupted(tmp_path / "run", 2)
    before = files.inventory(tmp_path / "run" / "state")

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    again = Session.resume(config(tmp_path / "run", "output.save_every=1"))
    target = "mtpeft.files.sync" if at == "write_json" else "mtpeft.peft.store.write_tensors"
    monkeypatch.setattr(target, full)
    with pytest.raises(MtpeftError, match="no space left on the disk to write") as caught:
        again.train()
    assert "--resume" in caught.value.hint
    assert files.inventory(tmp_path / "run" / "state") == before
    monkeypatch.undo()
    assert Session.resume(config(tmp_path / "run")).loop.at.updates == session.loop.at.updates


def test_a_full_disk_at_the_start_leaves_no_run(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mtpeft.peft.store.write_tensors", full)
    with pytest.raises(MtpeftError, match="no space left"):
        Session.start(config(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_may_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtpeftError, match="cannot write"):
        Session.start(config(tmp_path / "file" / "run"))


@pytest.mark.parametrize("algorithm", ["lamb", "lion", "adopt", "adafactor", "nadamw", "radam", "rmsproptf", "madgrad"])
def test_an_optimizer_of_timm_goes_on_to_the_same_bits(tmp_path, algorithm):
    """Some count their steps in a group, and some as a plain number beside the moments."""
    settings = ("optimizer.name=timm", f"optimizer.settings.algorithm={algorithm}")
    Session.start(config(tmp_path / "whole", *settings)).train()
    interrupted(tmp_path / "cut", 2, *settings)
    Session.resume(config(tmp_path / "cut", *settings)).train()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_another_optimizer_does_not_take_over_the_moments(tmp_path):
    interrupted(tmp_path / "run", 2)
    for other in ("optimizer.name=sgd", "optimizer.settings.betas=[0.5,0.9]"):
        with pytest.raises(UsageError, match="optimizer is not what the run"):
            Session.resume(config(tmp_path / "run", other))
    Session.resume(config(tmp_path / "run", "optimizer.lr=0.001")).train()
