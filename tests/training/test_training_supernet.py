"""What is cut in the loop: a supernet, searched on validation data, or prompts; and resumed on either side of that."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import training_toy
from test_training_resume import assert_same_run, interrupted, interruptible, saved

from mtpeft.schedule import Update
from mtpeft.training.loop import Loop
from mtpeft.training.progress import Quiet
from mtpeft.training.session import Session
from mtpeft.training.setup import setup

__all__ = ["interruptible"]
SETTINGS = (
    "methods.noah.sizes=[1,3]", "methods.noah.generations=1", "methods.noah.population=4", "methods.noah.samples=5",
    "methods.noah.budget=500", "schedule.eval_every=2",
)  # fmt: skip


def config(folder: Path, *settings: str, scope: str = "shared"):
    """Six updates, of which the first three train the supernet."""
    return training_toy.config(folder, *SETTINGS, *settings, method=f"noah@{scope}")


@pytest.mark.parametrize(("scope", "after"), [("shared", 1), ("task", 4)])
def test_resumed_in_supernet_or_subnet_it_gives_the_same_bits(tmp_path, scope, after):
    Session.start(config(tmp_path / "whole", scope=scope)).train()
    interrupted(tmp_path / "cut", after, *SETTINGS, method=f"noah@{scope}")
    Session.resume(config(tmp_path / "cut", scope=scope)).train()
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    done = {name: bool(tensor) for name, tensor in saved(tmp_path / "cut").items() if name.endswith("common/done")}
    assert len(done) == (1 if scope == "shared" else 2) and all(done.values())


@pytest.mark.parametrize(("scope", "after"), [("shared", 2), ("task", 4)])
def test_resumed_before_or_behind_the_pruning_of_prompts_it_gives_the_same_bits(tmp_path, scope, after):
    settings = {"method": f"e2vpt@{scope}"}
    Session.start(training_toy.config(tmp_path / "whole", "methods.e2vpt.prune=0.5", **settings)).train()
    interrupted(tmp_path / "cut", after, "methods.e2vpt.prune=0.5", **settings)
    Session.resume(training_toy.config(tmp_path / "cut", "methods.e2vpt.prune=0.5", **settings)).train()
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    starts = [tensor for name, tensor in saved(tmp_path / "cut").items() if name.endswith("tokens/start")]
    assert starts and not any(len(start) for start in starts)


def test_a_run_trains_the_supernet_then_the_subnet_alone(tmp_path):
    run = setup(config(tmp_path))
    loop, counts, dataset, opened = Loop(run, Quiet()), [], run.dataset, set()
    run.dataset = lambda name, split: opened.add(split) or dataset(name, split)
    for event in run.events():
        loop.do(event)
        if isinstance(event, Update):
            counts.append(run.host.count().parts)
            assert opened == ({"train", "val"} if len(counts) > 2 else {"train"})
    assert len(set(counts[:3])) == len(set(counts[3:])) == 1 and counts[3] < counts[0]
    assert sum(p.numel() for n, p in loop.stage.parameters.items() if "head:" not in n) == counts[3]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_best_weights_of_the_supernet_become_a_subnet_too(tmp_path, monkeypatch, share):
    run = setup(config(tmp_path, "output.keep=best", f"methods.noah.supernet={share}"))
    loop, whole, ended = Loop(run, Quiet()), run.host.count().parts, []
    update, end = loop.validation.update, loop.validation.end
    monkeypatch.setattr(loop.validation, "update", lambda scores: loop.at.step == 2 and update(scores))
    monkeypatch.setattr(loop.validation, "end", lambda: ended.append((end(), run.host.count().parts)))
    loop.train()
    assert ended == [(None, whole)] and run.host.count().parts < whole
