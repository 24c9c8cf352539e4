from __future__ import annotations

from dataclasses import replace

import pytest
from support.training_toy import Toy, config

from mtpeft.errors import UsageError
from mtpeft.training.session import Session
from mtpeft.training.setup import setup


@pytest.fixture
def declare(monkeypatch):
    return lambda **declared: monkeypatch.setattr(Toy, "declares", replace(Toy.declares, **declared))


def test_a_task_that_a_method_does_not_serve_is_refused_before_training(tmp_path, declare):
    declare(accepts=("cls", "seg"))
    with pytest.raises(UsageError) as refused:
        setup(config(tmp_path / "run"))
    assert refused.value.message == 'task "a" is of type colours, and toy serves cls, seg'
    assert "leave a out" in refused.value.hint


def test_a_task_that_a_method_serves_is_trained(tmp_path, declare):
    declare(accepts=("cls", "colours"))
    assert list(setup(config(tmp_path / "run")).tasks) == ["a", "b"]


def test_no_run_adds_tasks_where_their_number_had_to_be_known(tmp_path, declare):
    declare(needs_task_count=True)
    Session.start(config(tmp_path / "first", tasks="a=colours")).train()
    with pytest.raises(UsageError, match="must know from the first stage on how many there will be, and --from adds"):
        Session.start(config(tmp_path / "second", tasks="b=colours"), source=tmp_path / "first")
    declare(needs_task_count=False)
    Session.start(config(tmp_path / "second", tasks="b=colours"), source=tmp_path / "first")
