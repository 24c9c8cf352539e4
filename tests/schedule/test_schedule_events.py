"""The streams of every kind: their grammar, and that they can be repeated and resumed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import islice
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.errors import UsageError
from mtpeft.plugins import registry, resolve
from mtpeft.schedule import Batch, Begin, End, Evaluate, Schedule, TaskSize, Update
from mtpeft.schedule.base import divide
from mtpeft.settings import build
from mtpeft_plugins.schedules.interleaved import Interleaved, Sampler
from mtpeft_plugins.schedules.joint import Joint
from mtpeft_plugins.schedules.sequential import Sequential

TASKS = {"cls": TaskSize(100, 8), "det": TaskSize(30, 4), "seg": TaskSize(50, 6)}

sizes = st.dictionaries(
    st.sampled_from(["cls", "det", "seg", "a.b", "mlp"]),
    st.builds(TaskSize, st.integers(1, 40), st.integers(4, 9)),
    min_size=1,
    max_size=4,
)
common = {"steps": st.integers(1, 12), "accumulate": st.integers(1, 4), "eval_every": st.integers(0, 5)}
schedules = st.one_of(
    st.builds(Joint, **common),
    st.builds(Sequential, **common),
    st.builds(Interleaved, sampler=st.sampled_from(get_args(Sampler)), **common),
)


def grammar(events: list) -> str:
    letter = {Begin: "<", Batch: "b", Update: "u", End: ">"}
    return "".join(letter.get(type(e)) or ("F" if e.final else "v") for e in events)


def test_the_stream_of_a_sequential_schedule_in_full() -> None:
    tasks = {"cls": TaskSize(9, 4), "det": TaskSize(5, 2)}
    stream = list(Sequential(steps=2, eval_every=1).events(tasks, 0))
    cls, det = {"cls": 4}, {"det": 2}
    assert stream == [
        Begin(0, ("cls",), 2),
        Batch(cls, cls), Update(0), Evaluate(0, ("cls",), "val", False),
        Batch(cls, cls), Update(1), Evaluate(0, ("cls",), "val", False),
        End(0, ("cls",)), Evaluate(0, ("cls",), "test", True),
        Begin(1, ("det",), 2),
        Batch(det, det), Update(0), Evaluate(1, ("det",), "val", False),
        Batch(det, det), Update(1), Evaluate(1, ("det",), "val", False),
        End(1, ("det",)), Evaluate(1, ("cls", "det"), "test", True),
    ]  # fmt: skip


def test_joint_batches_carry_every_task() -> None:
    quotas = [e.quota for e in Joint(steps=3).events(TASKS, 0) if isinstance(e, Batch)]
    assert quotas == [{"cls": 8, "det": 4, "seg": 6}] * 3


def test_an_epoch_of_a_mixed_stage_is_that_of_its_largest_task_in_batches() -> None:
    tasks = {"many": TaskSize(100, 50), "slow": TaskSize(31, 4)}  # 2 and 8 batches
    assert Joint(epochs=3).updates(tasks) == 3 * 8
    assert Interleaved(sampler="mixed", epochs=3).updates(tasks) == 3 * 8
    assert Interleaved(epochs=3).updates(tasks) == 3 * 10
    assert Joint().updates(tasks) == 10 * 8
    assert [e.steps for e in Sequential(epochs=1).events(tasks, 0) if isinstance(e, Begin)] == [2, 8]


def test_stages_can_be_spelt_out_and_order_chosen() -> None:
    stages = [["cls", "det"], ["seg"]]
    for kind in (Joint, Sequential, Interleaved):
        begins = [e.tasks for e in kind(stages=stages, steps=1).events(TASKS, 0) if isinstance(e, Begin)]
        assert begins == [("cls", "det"), ("seg",)]
    assert Sequential(order=["seg", "cls", "det"]).stage_tasks(list(TASKS)) == [("seg",), ("cls",), ("det",)]
    assert Joint(order=["seg", "cls", "det"]).stage_tasks(list(TASKS)) == [("seg", "cls", "det")]
    assert Sequential().stage_tasks(list(TASKS)) == [("cls",), ("det",), ("seg",)]


def test_after_a_stage_every_task_seen_is_evaluated() -> None:
    schedule = Sequential(stages=[["seg"], ["cls", "det"]], steps=1)
    finals = [e for e in schedule.events(TASKS, 0) if isinstance(e, Evaluate) and e.final]
    assert [(e.stage, e.tasks, e.split) for e in finals] == [
        (0, ("seg",), "test"),
        (1, ("seg", "cls", "det"), "test"),
    ]


def test_validation_comes_every_so_many_updates_and_once_at_the_end() -> None:
    assert grammar(Joint(steps=5, eval_every=2).events(TASKS, 0)) == "<bubuvbubuvbuv>F"
    assert grammar(Joint(steps=4, eval_every=2).events(TASKS, 0)) == "<bubuvbubuv>F"
    assert grammar(Joint(steps=2).events(TASKS, 0)) == "<bubuv>F"


def test_accumulated_batches_weigh_as_one() -> None:
    batches = [e for e in Joint(steps=1, accumulate=3).events(TASKS, 0) if isinstance(e, Batch)]
    assert [b.quota for b in batches] == [
        {"cls": 3, "det": 2, "seg": 2},
        {"cls": 3, "det": 1, "seg": 2},
        {"cls": 2, "det": 1, "seg": 2},
    ]
    for task in TASKS:
        assert sum(b.share(task) for b in batches) == pytest.approx(1)
    assert [b.share("cls") for b in batches] == [3 / 8, 3 / 8, 2 / 8]
    assert Batch({"cls": 4}).share("cls") == 1


@given(schedule=schedules, tasks=sizes, seed=st.integers(0, 9))
def test_every_stream_follows_the_grammar(schedule: Schedule, tasks: dict, seed: int) -> None:
    stages = grammar(list(schedule.events(tasks, seed))).split("F")
    assert stages.pop() == ""
    assert len(stages) == len(schedule.stage_tasks(list(tasks)))
    for stage in stages:
        assert stage[0] == "<" and stage[-2:] == "v>"
        updates = stage[1:-1].replace("v", "").split("u")
        assert updates.pop() == ""
        assert updates == ["b" * schedule.accumulate] * schedule.steps


@given(schedule=schedules, tasks=sizes, seed=st.integers(0, 9), data=st.data())
def test_streams_repeat_and_resume_by_position(schedule: Schedule, tasks: dict, seed: int, data: st.DataObject) -> None:
    whole = list(schedule.events(tasks, seed))
    position = data.draw(st.integers(0, len(whole)))
    assert list(islice(schedule.events(tasks, seed), position, None)) == whole[position:]


@given(schedule=schedules, tasks=sizes, seed=st.integers(0, 9))
def test_stages_pair_up_and_batches_stay_in_their_stage(schedule: Schedule, tasks: dict, seed: int) -> None:
    begun, ended, now = [], [], ()
    for event in schedule.events(tasks, seed):
        match event:
            case Begin(stage, names):
                begun.append((stage, names))
                now = names
            case End(stage, names):
                ended.append((stage, names))
            case Batch(quota):
                assert set(quota) <= set(now)
    assert begun == ended
    assert sorted(name for _, names in begun for name in names) == sorted(tasks)


@given(tasks=sizes, seed=st.integers(0, 9), accumulate=st.integers(1, 4))
def test_every_task_trains_its_share_of_samples(tasks: dict, seed: int, accumulate: int) -> None:
    for schedule in (Joint(epochs=1), Sequential(epochs=1), Interleaved(sampler="round-robin", steps=len(tasks))):
        schedule.accumulate = accumulate
        met: Counter = Counter()
        for event in schedule.events(tasks, seed):
            if isinstance(event, Batch):
                met.update(event.quota)
        for name, size in tasks.items():
            assert met[name] >= (size.batch_size if isinstance(schedule, Interleaved) else size.count)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), max_size=4), st.integers(1, 9))
def test_divided_quotas_add_up(quota: dict, parts: int) -> None:
    pieces = divide(quota, parts)
    assert len(pieces) == parts
    for name, number in quota.items():
        assert sum(p[name] for p in pieces) == number
        assert max(p[name] for p in pieces) - min(p[name] for p in pieces) <= 1


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"steps": 3, "epochs": 1}, "steps = 3 and epochs = 1 exclude each other", "one of them"),
        ({"steps": 0}, "schedule.steps = 0 does not fit", "a whole number of at least 1"),
        ({"epochs": -2}, "schedule.epochs = -2 does not fit", "a whole number of at least 1"),
        ({"accumulate": 0}, "schedule.accumulate = 0 does not fit", "the default is 1"),
        ({"eval_every": -1}, "schedule.eval_every = -1 does not fit", "a whole number of at least 0"),
        ({"stages": [["cls"]], "order": ["cls"]}, "stages and order exclude each other", "in order"),
        ({"stages": [["cls"], []]}, "stage 1 of stages names no task", "leave the stage out"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        build(Joint, settings, "schedule")
    assert message in error.value.message
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"stages": [["cls"], ["dett", "seg"]]}, 'stages names a task "dett"', 'did you mean "det"?'),
        ({"order": ["cls", "seg", "dat"]}, 'order names a task "dat"', 'did you mean "det"?'),
        ({"stages": [["cls", "det"], ["seg", "cls"]]}, 'names the task "cls" twice', "one stage"),
        ({"stages": [["cls"]]}, 'stages leaves out "det", "seg"', "add it to stages"),
        ({"order": ["seg", "cls"]}, 'order leaves out "det"', "add it to order"),
        ({"accumulate": 5}, 'cannot divide the batch size 4 of task "det"', "schedule.accumulate"),
    ],
)
def test_settings_that_do_not_fit_the_tasks_are_refused_at_once(settings: dict, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        Joint(**settings).events(TASKS, 0)
    assert message in error.value.message
    assert hint in error.value.hint


def test_no_task_and_no_sample_are_refused() -> None:
    with pytest.raises(UsageError, match="no task to train"):
        Joint().events({}, 0)
    with pytest.raises(UsageError, match='task "cls" has no training samples'):
        Joint().events({"cls": TaskSize(0, 4)}, 0)


def test_builtin_names_lead_to_schedules() -> None:
    assert set(registry("schedules")) == {"joint", "sequential", "interleaved"}
    for name in registry("schedules"):
        assert issubclass(resolve("schedules", name), Schedule)


def test_schedules_import_no_torch() -> None:
    modules = ", ".join(entry.reference.split(":")[0] for entry in registry("schedules").values())
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_next_stages_tasks_are_evaluated_ahead_when_asked() -> None:
    stream = list(Sequential(steps=1, evaluate_before=True).events(TASKS, 0))
    assert [(e.stage, e.tasks, e.ahead) for e in stream if isinstance(e, Evaluate) and e.final] == [
        (0, ("cls",), ("det",)),
        (1, ("cls", "det"), ("seg",)),
        (2, ("cls", "det", "seg"), ()),
    ]


def test_all_tasks_seen_are_probed_inside_later_stages_when_asked() -> None:
    plain = list(Sequential(steps=5, eval_every=2).events(TASKS, 0))
    asked = list(Sequential(steps=5, eval_every=2, probe_every=2).events(TASKS, 0))
    probes = [(i, e) for i, e in enumerate(asked) if isinstance(e, Evaluate) and e.probe]
    assert [(e.stage, e.tasks, e.final) for _, e in probes] == [
        (stage, seen, False) for stage, seen in ((1, ("cls", "det")), (2, ("cls", "det", "seg"))) for _ in (2, 4)
    ]
    assert all(isinstance(asked[i - 1], Update) and (asked[i - 1].step + 1) % 2 == 0 for i, _ in probes)
    assert [e for e in asked if not (isinstance(e, Evaluate) and e.probe)] == plain
