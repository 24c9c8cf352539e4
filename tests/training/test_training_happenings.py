"""One channel: what the log, observers, loggers and people are told of the same training."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from support.training_toy import config

from mtpeft.errors import MtpeftError
from mtpeft.training import happenings
from mtpeft.training.happenings import Channel, Happening, Measured, Remark, Stopwatch, Updated
from mtpeft.training.listeners import Loggers
from mtpeft.training.progress import Lines
from mtpeft.training.session import Session

KINDS = Happening.__subclasses__()


class Ear:
    """Keeps what it is told; as a logger it keeps plain events."""

    def __init__(self) -> None:
        self.told: list = []

    def open(self, folder) -> None:
        self.told.append(folder)

    def tell(self, happening: Happening) -> None:
        self.told.append(happening)

    log = tell

    def close(self) -> None:
        self.told.append("closed")


def names(told: list[Happening]) -> list[str]:
    return [happening.event for happening in told]


def test_each_kind_has_a_name_of_its_own_and_measured_values_apart():
    assert len({kind.event for kind in KINDS}) == len(KINDS)
    reproducible = {"stage", "step", "losses", "norm", "learning_rates", "value", "count", "split", "task", "tasks"}
    for kind in (kind for kind in KINDS if kind.logged):
        assert {field.name for field in fields(kind)} <= reproducible | {"steps", "measured"}


def test_a_training_is_told_from_beginning_to_end(tmp_path):
    ear, logger = Ear(), Ear()
    settings = ("schedule.steps=2", "schedule.eval_every=1", "output.save_every=1")
    Session.start(config(tmp_path / "run", *settings, tasks="a=colours"), progress=ear, loggers={"ear": logger}).train()
    folder, *events, closed = logger.told
    assert folder == tmp_path / "run" and closed == ear.told.pop() == "closed"
    expected = ["run_began", "stage_began", "update", "saved", "evaluate", "update", "saved", "evaluate"]
    expected += ["evaluate", "stage_ended", "saved", "run_ended"]
    assert names(ear.told) == [event["event"] for event in events] == expected
    assert json.loads(json.dumps(events)) == [json.loads(json.dumps(told.to_json())) for told in ear.told]
    logged = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert logged == [json.loads(json.dumps(told.to_json())) for told in ear.told if told.logged]


def test_an_update_says_its_rates_time_and_speed(tmp_path):
    ear = Ear()
    Session.start(config(tmp_path / "run", "optimizer.warmup=0.5", "optimizer.head_lr=0.5"), progress=ear).train()
    updates = [told for told in ear.told if isinstance(told, Updated)]
    assert [update.learning_rates["toy"] for update in updates[:3]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert updates[2].learning_rates["heads"] == pytest.approx(0.5)
    for told in ear.told:
        if isinstance(told, happenings.StageEnded | happenings.Evaluated | happenings.RunEnded):
            assert told.measured.memory_bytes > 2**20
    for update in updates:
        assert update.measured.seconds * update.measured.images_per_second == pytest.approx(12)


def test_an_update_asks_the_device_for_nothing(tmp_path, monkeypatch):
    """Memory is looked at, and a device waited for, between updates only; a GPU would stand still meanwhile."""
    from mtpeft.training import costs, loop

    asked, ear = [], Ear()
    for module in (loop, costs):
        monkeypatch.setattr(module, "peak_memory", lambda device: asked.append(ear.told[-1].event) or 2**21)
    monkeypatch.setattr("torch.cuda.synchronize", lambda *given: asked.append("synchronize"))
    Session.start(config(tmp_path / "run", "schedule.steps=9", "schedule.eval_every=3"), progress=ear).train()
    assert asked.count("update") <= 3 and "synchronize" not in asked  # each evaluation follows an update
    assert len(asked) == 2 * 4 + 1 + 2  # of two tasks, three times and at the end; the stage's, its costs, the run's


def test_a_broken_display_stops_no_training(tmp_path, monkeypatch):
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr.write", full)
    Session.start(config(tmp_path / "run", "schedule.steps=2"), progress=Lines(seconds=0)).train()
    assert (tmp_path / "run" / "results.json").exists()


def test_a_stopwatch_counts_from_its_making(monkeypatch):
    clock = iter([10.0, 14.0, 15.0])
    monkeypatch.setattr(happenings, "perf_counter", lambda: next(clock))
    watch = Stopwatch(images=6)
    assert watch.read(26) == Measured(4.0, 5.0, None)
    assert watch.read(6, 100) == Measured(5.0, None, 100)


@pytest.mark.parametrize("failing", ["open", "log", "close"])
@pytest.mark.parametrize("error", [ValueError("no\x1b[31m network"), SystemExit(3)])
def test_a_logger_that_fails_is_named_once_and_stops_nothing(failing, error, tmp_path, capsys):
    def fail(*given):
        raise error

    broken, sound = Ear(), Ear()
    setattr(broken, failing, fail)
    run = config(tmp_path / "run", "schedule.steps=1", tasks="a=colours")
    Session.start(run, loggers={"broken": broken, "sound": sound}).train()
    err = capsys.readouterr().err
    assert err.count('warning: logger "broken" raised and is switched off') == 1 and "\x1b" not in err
    assert sound.told[-2]["event"] == "run_ended" and sound.told[-1] == "closed"
    assert (tmp_path / "run" / "results.json").exists()
    if failing == "open":
        assert broken.told == []


def test_a_strict_process_hears_what_a_logger_raises(monkeypatch):
    monkeypatch.setenv("MTPEFT_STRICT", "1")
    broken, listener = Ear(), Ear()
    broken.log = lambda event: {}["key"]
    with pytest.raises(KeyError):
        Loggers({"broken": broken}, listener).tell(Remark("hello"))


def test_loggers_are_closed_when_a_training_fails(tmp_path):
    logger = Ear()
    run = config(tmp_path / "run", "tasks.a.spoiled=3", tasks="a=colours")
    with pytest.raises(MtpeftError, match="loss of task"):
        Session.start(run, loggers={"ear": logger}).train()
    assert logger.told[-1] == "closed"


def test_a_channel_tells_in_order_and_closes_backwards():
    order = []

    class Named(Ear):
        def __init__(self, name: str) -> None:
            self.name = name

        def tell(self, happening: Happening) -> None:
            order.append(self.name)

        def close(self) -> None:
            order.append(f"{self.name} closed")

    channel = Channel(Named("a"), Channel(Named("b")))
    channel.tell(Remark("hello"))
    channel.close()
    channel.close()
    assert order == ["a", "b", "b closed", "a closed"]


@pytest.mark.parametrize("left", [0, 20])
def test_a_log_that_lost_lines_is_refused_and_left_alone(left, tmp_path):
    run = config(tmp_path / "run", "output.save_every=1", "schedule.steps=3", tasks="a=colours")
    session = Session.start(run)
    after = session.loop.after

    def interrupted(event):
        after(event)
        session.signals.wanted = 2 * (session.loop.at.updates == 2)

    session.loop.after = interrupted
    with pytest.raises(KeyboardInterrupt):
        session.train()
    log = tmp_path / "run" / "events.jsonl"
    log.write_bytes(log.read_bytes()[:left])
    with pytest.raises(MtpeftError, match=rf'events.jsonl" has {left} bytes, and \d+ were written') as caught:
        Session.resume(run).train()
    assert caught.value.hint
    assert log.stat().st_size == left


def test_the_loggers_of_a_recipe_are_told(tmp_path):
    """The table of the recipe is enough: nothing else calls for them."""
    session = Session.start(config(tmp_path / "run", "loggers.csv.file=curve.csv"))
    session.train()
    lines = (tmp_path / "run" / "curve.csv").read_text().splitlines()
    assert lines[0] == "event,stage,step,task,split,value"
    assert {line.split(",")[0] for line in lines[1:]} == {"update", "evaluate"}


def test_a_wrong_logger_stops_a_run_before_it_begins(tmp_path):
    with pytest.raises(MtpeftError, match='there is no logger "cvs"'):
        Session.start(config(tmp_path / "run", "loggers.cvs.file=curve.csv"))
    assert not (tmp_path / "run").exists()
