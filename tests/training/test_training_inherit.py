from __future__ import annotations

import json

import pytest
import torch
from support.training_toy import config

from mtpeft.errors import MtpeftError, UsageError
from mtpeft.training.session import Session
from mtpeft.training.setup import open_run


def trained(folder, *settings, source=None, **choices):
    session = Session.start(config(folder, *settings, **choices), source=source)
    session.train()
    return session.run


def owned(run, name):
    return {n: t.clone() for n, t in (run.host.tensors(name) | run.host.head_of(name).state_dict()).items()}


@pytest.fixture
def first(tmp_path):
    return trained(tmp_path / "first", "schedule.steps=12", tasks="a=colours", method="toy@task")


def test_a_task_added_later_leaves_the_old_one_as_it_was(tmp_path, first):
    second = trained(tmp_path / "second", tasks="b=colours", source=tmp_path / "first")
    before, after = owned(first, "a"), owned(second, "a")
    assert all(torch.equal(before[name], after[name]) for name in before)
    matrix = second.matrix
    assert matrix.stages == [("a",), ("b",)]
    assert list(matrix.cells) == [(0, "a"), (1, "a"), (1, "b")]
    assert matrix.value(0, "a") == matrix.value(1, "a") == first.matrix.value(0, "a")
    about = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert about["from"] == {"run": str(tmp_path / "first"), "tasks": ["a"], "stages": 1}


def test_such_a_run_opens_resumes_and_serves_again(tmp_path, first):
    def build():
        return config(tmp_path / "second", tasks="b=colours")

    second = Session.start(build(), source=tmp_path / "first")
    resumed = Session.resume(open_config(tmp_path / "second"))
    assert resumed.run.inherited == ("a",) and resumed.run.first_stage == 1
    resumed.train()
    second.train()
    assert all(torch.equal(t, owned(second.run, "b")[n]) for n, t in owned(resumed.run, "b").items())
    third = trained(tmp_path / "third", tasks="c=colours", source=tmp_path / "second")
    assert third.matrix.stages == [("a",), ("b",), ("c",)]
    assert open_run(tmp_path / "third").host.tasks == ["a", "b", "c"]


def open_config(folder):
    from mtpeft.config import load

    return load(folder / "config.toml")


def test_an_old_task_that_is_named_is_trained_on(tmp_path, first):
    second = trained(tmp_path / "second", tasks="a=colours,b=colours", source=tmp_path / "first")
    assert second.inherited == ()
    assert not all(torch.equal(t, owned(second, "a")[n]) for n, t in owned(first, "a").items())


def test_shared_parts_go_on_and_forgetting_is_seen(tmp_path):
    trained(tmp_path / "first", tasks="a=colours", method="toy@shared")
    second = trained(tmp_path / "second", tasks="b=colours", method="toy@shared", source=tmp_path / "first")
    assert second.matrix.to_json()["summary"]["tasks"]["a"]["forgetting"] is not None


@pytest.mark.parametrize(
    ("settings", "choices", "message"),
    [
        ((), {"method": "toy@shared"}, "methods is not what the run"),
        (("image_size=64",), {}, "image_size is not what the run"),
        ((), {"tasks": "a=cls"}, 'task "a" is of another type'),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, first, settings, choices, message):
    with pytest.raises(UsageError, match=message):
        Session.start(config(tmp_path / "second", *settings, **choices), source=tmp_path / "first")
    assert not (tmp_path / "second").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(MtpeftError, match="is no run"):
        Session.start(config(tmp_path / "second"), source=tmp_path)
