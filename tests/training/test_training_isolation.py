"""A task is isolated if nothing that acts for it belongs to another owner: who acts says so, and no count does."""

from __future__ import annotations

import pytest
from support.training_toy import Toy, config

from mtpeft.training.run_files import is_isolated
from mtpeft.training.setup import setup


def isolated(folder, method: str) -> list[bool]:
    run = setup(config(folder, method=method, schedule="sequential"))
    for name in run.tasks:
        run.meet(name)
    return [is_isolated(run, name) for name in ("a", "b")]


@pytest.mark.parametrize(
    ("method", "expected"), [("toy@task", True), ("toy@shared", False), ("toy@shared+lora@task", False)]
)
def test_shared_parts_isolate_nobody(tmp_path, method, expected):
    assert isolated(tmp_path / "run", method) == [expected, expected]


def test_a_method_without_shared_parts_may_still_train_what_others_use(tmp_path, monkeypatch):
    """As in O-LoRA: the parts of every task seen act for every task."""
    monkeypatch.setattr(Toy, "owners", lambda self, task, seen: tuple(seen))
    assert isolated(tmp_path / "run", "toy@task") == [False, False]
