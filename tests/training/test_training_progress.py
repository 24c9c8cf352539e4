from __future__ import annotations

import io

import pytest
from rich.console import Console

from mtpeft.training.happenings import (
    Evaluated,
    Measured,
    Remark,
    RunBegan,
    Saved,
    StageBegan,
    StageEnded,
    StageResumed,
    StoppedEarly,
    Updated,
)
from mtpeft.training.progress import Bars, Lines, Quiet, choose

SPENT = Measured(0.1, 40.0, 2**20)


def update(step: int, losses: dict[str, float]) -> Updated:
    return Updated(0, step, losses, 1.0, {"lora": 1e-3}, SPENT)


def play(progress) -> None:
    for happening in (
        RunBegan("runs/x", ("a", "b", "c"), 0),
        StageBegan(0, ("a", "b"), 2),
        update(0, {"a": 1.5}),
        update(1, {"b": 0.25}),
        Saved(2),
        Evaluated(0, "val", "a", 2, 81.25, 4, SPENT),
        Evaluated(0, "val", "b", 2, None, 4, SPENT),
        StageEnded(0, ("a", "b"), SPENT),
        StageResumed(1, ("c",), 2, 1),
        StoppedEarly(1, 1),
        Remark("done"),
    ):
        progress.tell(happening)
    progress.close()


def test_bars_show_each_tasks_loss_and_last_metric():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    play(Bars(console))
    shown = console.file.getvalue()
    assert "a loss 1.500 val 81.25" in shown and "b loss 0.250 val -" in shown
    assert "2/2" in shown and "1/2" in shown and "done" in shown


def test_lines_are_plain_and_on_stderr(capsys):
    play(Lines(seconds=0))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "stage 1: a, b; 2 updates",
        "stage 1  1/2  a 1.5000",
        "stage 1  2/2  b 0.2500",
        "val a: 81.25 (4 samples)",
        "val b: - (4 samples)",
        "stage 2: c; 2 updates, 1 done",
        "no task improved on validation: stage 2 stops at update 1",
        "done",
    ]


def test_lines_keep_to_their_pace_but_say_the_last_update(capsys):
    progress = Lines(seconds=1000)
    progress.tell(StageBegan(0, ("a",), 3))
    for step in range(3):
        progress.tell(update(step, {"a": 1.0}))
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()[1:]] == ["3/3"]


def test_quiet_shows_warnings_alone(capsys):
    play(Quiet())
    assert capsys.readouterr() == ("", "")
    Quiet().tell(Remark("a logger raised", warning=True))
    assert capsys.readouterr() == ("", "warning: a logger raised\n")


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_names_of_others_reach_no_terminal_raw(kind, capsys):
    hostile = "a\x1b]0;owned\x07\r\nb\u202e[bold]"
    terminal = Console(stderr=True, force_terminal=True, width=200)
    progress = Bars(terminal) if kind is Bars else Lines(seconds=0)
    for happening in (
        StageBegan(0, (hostile,), 1),
        update(0, {hostile: 1.0}),
        Evaluated(0, hostile, hostile, 1, 1.0, 4, SPENT),
        Remark(hostile, warning=True),
    ):
        progress.tell(happening)
    progress.close()
    err = capsys.readouterr().err
    assert "\x1b]" not in err and "\x07" not in err and "\u202e" not in err and "\r\nb" not in err
    assert r"a\x1b]0;owned\x07\r\nb\u202e" in err


def test_the_choice_follows_the_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(choose(quiet=False), Bars)
    assert isinstance(choose(quiet=True), Quiet)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert isinstance(choose(quiet=False), Lines)
