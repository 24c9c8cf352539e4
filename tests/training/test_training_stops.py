"""Ctrl-C and SIGTERM at any moment, locks, and one line that starts or goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
from support import killed
from support.training_toy import config

from mtpeft import files
from mtpeft.cli import main
from mtpeft.errors import MtpeftError, Stopped, UsageError
from mtpeft.training import evaluate as evaluating
from mtpeft.training import signals
from mtpeft.training.loop import Loop
from mtpeft.training.session import Session

LINE = ["train", "--tasks", "a=colours,b=colours", "--method", "toy@task", "--backbone", "tiny", "--steps", "4"]
LINE += ["--quiet", "--schedule", "sequential", "--device", "cpu", "--out", "run"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with chdir(tmp_path):
        yield
    signal.signal(signal.SIGINT, before)


def results(folder: str) -> dict:
    data = json.loads(Path(folder, "results.json").read_text())
    return {name: data[name] for name in ("tasks", "stages", "matrix")}


def log(folder: str) -> list[dict]:
    lines = Path(folder, "events.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "measured"} for line in lines]


def adapter(folder: str) -> dict[str, str]:
    return files.inventory(Path(folder, "adapter"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    from support.training_toy import register

    from mtpeft import plugins

    register()
    folder = tmp_path_factory.mktemp("whole")
    assert main([*LINE[:-1], str(folder / "run")]) == 0
    plugins.reset()
    return folder / "run"


def assert_same(folder: str, whole: Path) -> None:
    assert adapter(folder) == adapter(str(whole))
    assert results(folder) == results(str(whole))
    assert log(folder) == log(str(whole))


def pressed(number: signal.Signals, call: int, function):
    """A function that is interrupted at its ``call``-th call."""
    calls = iter(range(call, -1, -1))

    def wrapped(*given, **named):
        if next(calls, -1) == 1:
            os.kill(os.getpid(), number)
        return function(*given, **named)

    return wrapped


PLACES = [(Loop, "batch"), (Loop, "update"), (Loop, "begin"), (Loop, "end"), (evaluating, "predict")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("place", "name"), PLACES, ids=lambda item: getattr(item, "__name__", item))
@pytest.mark.parametrize("call", [1, 6])
def test_the_same_line_goes_on_wherever_a_signal_came(call, place, name, number, code, whole, monkeypatch, capsys):
    """In an evaluation of several tasks, too: what it said of the first is said once."""
    monkeypatch.setattr(place, name, pressed(number, call, getattr(place, name)))
    first = main([*LINE, "--resume"])
    monkeypatch.undo()
    assert first == (0 if name in ("begin", "end") and call == 6 else code)
    if first:
        err = capsys.readouterr().err
        assert "error: interrupted" in err
        assert ("--resume --out run` goes on from the last saved update" in err) == Path("run").is_dir()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert main([*LINE, "--resume"]) == 0
    assert_same("run", whole)


def test_sigterm_while_all_is_built_leaves_a_line_that_starts(whole, monkeypatch):
    from mtpeft.training import session

    monkeypatch.setattr(session, "setup", pressed(signal.SIGTERM, 1, session.setup))
    assert main([*LINE, "--resume"]) == 143
    assert list(Path().iterdir()) == []
    monkeypatch.undo()
    assert main([*LINE, "--resume"]) == 0
    assert_same("run", whole)


def test_an_update_that_takes_too_long_is_given_up_and_nothing_is_lost(whole, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.3)
    batch, calls = Loop.batch, []

    def slow(self, event):
        calls.append(event)
        if len(calls) == 8:  # the calls of the check before the training are among them
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        batch(self, event)

    monkeypatch.setattr(Loop, "batch", slow)
    started = time.monotonic()
    assert main([*LINE, "--set", "output.save_every=1"]) == 143
    assert time.monotonic() - started < 20
    monkeypatch.undo()
    assert main([*LINE, "--resume"]) == 0
    assert_same("run", whole)


def test_a_second_ctrl_c_saves_nothing_in_the_middle_of_an_update(whole, monkeypatch):
    batch, calls = Loop.batch, []

    def twice(self, event):
        batch(self, event)
        calls.append(event)
        if len(calls) == 7:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "batch", twice)
    assert main([*LINE, "--set", "output.save_every=2"]) == 130
    monkeypatch.undo()
    assert main([*LINE, "--resume"]) == 0
    assert_same("run", whole)


def test_in_a_thread_signals_are_left_alone():
    from threading import Thread

    made = []
    thread = Thread(target=lambda: made.append(Session.start(config("run", tasks="a=colours")).train()))
    thread.start()
    thread.join()
    assert made and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- the same line


def test_a_corrected_line_replaces_a_folder_in_which_nothing_was_trained(capsys):
    Session.start(config("run", "schedule.steps=3"))  # and died before its first update
    assert main(LINE) == 0
    assert main(LINE) == 2
    assert "exists already, and nothing is overwritten" in capsys.readouterr().err


def test_resume_starts_where_a_folder_holds_no_state():
    import shutil

    Session.start(config("run", "schedule.steps=3"))
    shutil.rmtree("run/state")
    assert main([*LINE, "--resume"]) == 0


@pytest.mark.parametrize("name", ["mine.txt", "results.json", "best"])
def test_what_else_lies_there_is_left_alone(name):
    Session.start(config("run", "schedule.steps=3"))
    Path("run", name).write_text("precious")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        Session.start(config("run"))
    assert Path("run", name).read_text() == "precious"


def test_one_line_with_from_and_resume_starts_and_goes_on(monkeypatch):
    def line(task: str, out: str) -> list[str]:
        return ["train", "--tasks", f"{task}=colours", *LINE[3:-1], out]

    assert main(line("a", "first")) == 0
    second = [*line("b", "second"), "--from", "first", "--resume"]
    assert main([*line("b", "whole"), "--from", "first"]) == 0
    monkeypatch.setattr(Loop, "update", pressed(signal.SIGTERM, 3, Loop.update))
    assert main(second) == 143
    monkeypatch.undo()
    assert main(second) == 0
    assert_same("second", Path("whole"))
    assert main([*line("b", "second"), "--from", "whole", "--resume"]) == 2


def test_a_run_that_fails_before_its_first_update_leaves_no_folder(monkeypatch):
    session = Session.start(config("run"))
    monkeypatch.setattr(Loop, "update", lambda self, event: {}["key"])
    with pytest.raises(KeyError):
        session.train()
    assert list(Path().iterdir()) == []


# --- two jobs

CHILD = """
import sys
from support import training_toy
training_toy.register()
from mtpeft.training.session import Session
session = Session.open(training_toy.config(sys.argv[1], "schedule.steps=4"))
print("ready", flush=True)
sys.stdin.readline()
session.train()
"""


@pytest.mark.parametrize("how", [Session.start, Session.resume, Session.open], ids=lambda how: how.__name__)
def test_a_second_job_gets_one_sentence_and_the_first_is_unharmed(how, monkeypatch):
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", CHILD, str(Path("run").absolute())]
    first = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        before = files.inventory(Path("run"))
        monkeypatch.setattr("mtpeft.training.session.setup", None)  # refused before anything is built
        with pytest.raises(MtpeftError, match=rf"is being written by process {first.pid} on .+"):
            how(config(Path("run").absolute(), "schedule.steps=4"))
        assert files.inventory(Path("run")) == before
        first.communicate("\n")
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 0 and Path("run/results.json").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["run"]


def test_a_session_is_stopped_with_the_number_of_the_signal():
    session = Session.start(config("run", *killed.SETTINGS, **killed.CHOICES))
    session.signals.wanted = signal.SIGTERM
    with pytest.raises(Stopped) as caught:
        session.train()
    assert caught.value.exit_code == 143
