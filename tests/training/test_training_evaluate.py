from __future__ import annotations

import pytest
import torch
from support.training_toy import config

from mtpeft.training.evaluate import evaluate, predict
from mtpeft.training.session import Session
from mtpeft.training.setup import open_run


@pytest.fixture
def run(tmp_path):
    session = Session.start(config(tmp_path / "run", "schedule.steps=12"))
    session.train()
    return session.run


def test_the_batch_size_changes_nothing(run):
    scores = [evaluate(run, "a", "test", batch_size=size) for size in (1, 2, 9, 64)]
    assert all(score == scores[0] for score in scores)


def test_logits_do_not_depend_on_the_batch(run):
    images = torch.rand(5, 3, 32, 32)
    together = predict(run, "a", images, [{}] * 5)
    for row, prediction in enumerate(together):
        alone = predict(run, "a", images[row : row + 1], [{}])[0]
        torch.testing.assert_close(alone["scores"], prediction["scores"], atol=1e-5, rtol=0)


def test_evaluation_leaves_mode_and_generator(run):
    run.host.train()
    before = torch.get_rng_state()
    evaluate(run, "b", "val")
    assert run.host.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_opened_again_gives_the_same_scores(run):
    again = open_run(run.folder)
    for name in ("a", "b"):
        assert evaluate(again, name, "test") == evaluate(run, name, "test")
        assert run.matrix.value(0, name) == evaluate(again, name, "test").value
