from __future__ import annotations

import io

from rich.console import Console

from mtpeft.task import Score
from mtpeft.training.progress import Bars, Lines, Quiet, choose


def play(progress) -> None:
    progress.begin(0, ("a", "b"), 2, 0)
    progress.step(0, {"a": 1.5})
    progress.step(1, {"b": 0.25})
    progress.score("a", "val", Score(81.25, 4))
    progress.score("b", "val", Score(None, 4))
    progress.begin(1, ("c",), 2, 1)
    progress.say("done")
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
        "done",
    ]


def test_lines_keep_to_their_pace_but_say_the_last_update(capsys):
    progress = Lines(seconds=1000)
    progress.begin(0, ("a",), 3, 0)
    for step in range(3):
        progress.step(step, {"a": 1.0})
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()[1:]] == ["3/3"]


def test_the_choice_follows_the_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(choose(quiet=False), Bars)
    assert isinstance(choose(quiet=True), Quiet)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert isinstance(choose(quiet=False), Lines)
