from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support import training_toy
from support.training_toy import config

from mtpeft.api import Routine
from mtpeft.backbone import state_sha256
from mtpeft.errors import DataError, MtpeftError, UsageError
from mtpeft.schedule import Batch, Begin, Evaluate
from mtpeft.task import Score
from mtpeft.training.evaluate import evaluate, load
from mtpeft.training.loop import Loop
from mtpeft.training.progress import Quiet
from mtpeft.training.run import Run
from mtpeft.training.session import Session
from mtpeft.training.setup import setup


def trained(folder, *settings: str, **choices: str) -> Session:
    session = Session.start(config(folder, *settings, **choices))
    session.train()
    return session


def tensors(run: Run) -> dict[str, torch.Tensor]:
    parts = {f"{o}/{n}": t.detach().clone() for o in run.host.owners() for n, t in run.host.tensors(o).items()}
    return parts | {n: t.detach().clone() for n, t in run.host.heads.state_dict().items()}


def log(session: Session) -> list[dict]:
    return [json.loads(line) for line in (session.run.folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("schedule", ["joint", "sequential", "interleaved"])
def test_training_learns_and_leaves_a_run(tmp_path, schedule):
    session = trained(tmp_path / "run", f"schedule.steps={120 if schedule == 'interleaved' else 60}", schedule=schedule)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(row["value"] > 80 for row in results["matrix"])
    assert results["costs"]["parameters"]["tasks"] == {"a": 128, "b": 128}
    assert results["costs"]["parameters"]["heads"] == {"a": 51, "b": 51}
    files = {path.name for path in session.run.folder.iterdir()}
    assert files >= {"config.toml", "manifest.json", "adapter", "state", "results.json", "events.jsonl"}
    updates = [entry for entry in log(session) if entry["event"] == "update"]
    assert updates[-1]["losses"].popitem()[1] < updates[0]["losses"].popitem()[1]


def test_the_matrix_has_a_row_for_each_stage_with_all_tasks_seen(tmp_path):
    matrix = trained(tmp_path / "run", schedule="sequential").run.matrix
    assert list(matrix.cells) == [(0, "a"), (1, "a"), (1, "b")]
    assert matrix.cells[1, "b"].detail["right"] <= matrix.cells[1, "b"].count == 9


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    runs = [trained(tmp_path / str(i), f"seed={seed}").run for i, seed in enumerate((3, 3, 4))]
    first, same, other = (tensors(run) for run in runs)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_workers_change_no_bit(tmp_path):
    alone, helped = (tensors(trained(tmp_path / str(n), f"workers={n}").run) for n in (0, 2))
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_the_backbone_is_as_it_was(tmp_path):
    before = state_sha256(training_toy.tiny().state_dict())
    run = trained(tmp_path / "run", method="toy@shared").run
    assert state_sha256(run.host.detach().state_dict()) == before == run.backbone.sha256


def test_training_b_leaves_what_a_owns_untouched(tmp_path):
    run = setup(config(tmp_path / "run", "optimizer.weight_decay=0.5", schedule="sequential"))
    loop, kept = Loop(run, Quiet()), {}
    for event in run.events():
        loop.do(event)
        if isinstance(event, Evaluate) and event.final and not kept:
            kept = {n: t.clone() for n, t in run.host.tensors("a").items()} | {
                f"head {n}": t.clone() for n, t in run.host.head_of("a").state_dict().items()
            }
    after = run.host.tensors("a") | {f"head {n}": t for n, t in run.host.head_of("a").state_dict().items()}
    assert kept and all(torch.equal(kept[name], after[name]) for name in kept)


def test_the_optimizer_holds_only_what_the_stage_trains(tmp_path):
    run = setup(config(tmp_path / "run", schedule="sequential"))
    loop, names = Loop(run, Quiet()), []
    for event in run.events():
        loop.do(event)
        if isinstance(event, Begin):
            names.append({name.split("/")[0] for name in loop.stage.parameters})
    assert names == [{"a", "head:a"}, {"b", "head:b"}]


def gradients(folder, monkeypatch, *settings: str) -> dict[str, torch.Tensor]:
    """The gradients of the first update, without dropout."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *rest, **more: x)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    run = setup(config(folder, "optimizer.clip_norm=0.0", *settings, method="toy@shared"))
    loop = Loop(run, Quiet())
    found: dict[str, torch.Tensor] = {}
    for event in run.events():
        if type(event).__name__ == "Update":
            loop.stage.read_losses([float(loss) for _, loss in loop.stage.batch_losses])
            loop.stage.aggregate()
            found = {n: p.grad.clone() for n, p in loop.stage.parameters.items() if p.grad is not None}
            break
        loop.do(event)
    return found


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, monkeypatch):
    whole = gradients(tmp_path / "1", monkeypatch)
    for parts in (2, 4):
        cut = gradients(tmp_path / str(parts), monkeypatch, f"schedule.accumulate={parts}")
        assert whole.keys() == cut.keys()
        for name in whole:
            torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)


def test_task_gradients_added_up_are_the_plain_gradient(tmp_path, monkeypatch):
    from mtpeft_plugins.balancing.equal import Equal

    plain = gradients(tmp_path / "1", monkeypatch)
    monkeypatch.setattr(Equal, "needs_task_gradients", True)
    apart = gradients(tmp_path / "2", monkeypatch)
    for name in plain:
        torch.testing.assert_close(apart[name], plain[name], rtol=1e-4, atol=1e-6)


def test_learned_loss_weights_are_trained(tmp_path):
    session = trained(tmp_path / "run", "balance.name=uw", "schedule.steps=20")
    assert any(float(s) != 0 for s in session.run.balancer.state().values())


def test_bf16_and_checkpointing_train_too(tmp_path):
    session = trained(tmp_path / "run", "optimizer.precision=bf16", "optimizer.checkpointing=true", "schedule.steps=40")
    assert session.run.matrix.value(0, "a") > 60


def test_checkpointing_gives_the_same_gradients(tmp_path, monkeypatch):
    plain = gradients(tmp_path / "1", monkeypatch)
    again = gradients(tmp_path / "2", monkeypatch, "optimizer.checkpointing=true")
    for name in plain:
        torch.testing.assert_close(again[name], plain[name])


def test_a_loss_that_is_no_number_stops_with_advice_and_leaves_the_last_state(tmp_path):
    session = Session.start(config(tmp_path / "run", "tasks.b.spoiled=4", "output.save_every=2"))
    with pytest.raises(MtpeftError, match='the loss of task "b" is nan at update 3 of stage 1') as caught:
        session.train()
    for word in ("optimizer.lr", "clip_norm", "fp32", "last saved state"):
        assert word in caught.value.hint
    again = Session.resume(config(tmp_path / "run", "tasks.b.spoiled=4", "output.save_every=2"))
    assert again.loop.at.updates == 2


def test_a_gradient_that_is_no_number_stops_before_any_weight_moves(tmp_path):
    run = setup(config(tmp_path / "run"))
    loop = Loop(run, Quiet())
    with pytest.raises(MtpeftError, match="the gradient of a, b is nan"):
        for event in run.events():
            if type(event).__name__ == "Update":
                next(iter(loop.stage.parameters.values())).grad.fill_(float("nan"))
            loop.do(event)
    assert all(t.isfinite().all() for t in tensors(run).values())


def test_early_stop_passes_over_the_rest_of_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr("mtpeft.training.evaluate.evaluate", lambda *given, **more: Score(50.0, 1))
    settings = ["schedule.eval_every=2", "schedule.steps=400", "output.patience=2"]
    session = trained(tmp_path / "run", *settings, schedule="sequential")
    steps = [(entry["stage"], entry["step"]) for entry in log(session) if entry["event"] == "update"]
    assert steps == [(stage, step) for stage in (0, 1) for step in range(6)]
    assert list(session.run.matrix.cells) == [(0, "a"), (1, "a"), (1, "b")]


def test_the_best_on_validation_is_kept_for_each_task_and_taken_back(tmp_path, monkeypatch):
    session = Session.start(config(tmp_path / "run", "schedule.eval_every=1", "schedule.steps=3", "output.keep=best"))
    values = iter([("a", 50.0), ("b", 60.0), ("a", 70.0), ("b", 80.0), ("a", 10.0), ("b", 90.0)])
    kept = []

    def told(run, name, split, **more):
        if split == "test":
            return Score(1.0, 1)
        wanted, value = next(values)
        assert wanted == name
        kept.append(tensors(run))
        return Score(value, 1)

    monkeypatch.setattr("mtpeft.training.evaluate.evaluate", told)
    session.train()
    now = tensors(session.run)
    assert all(torch.equal(now[name], kept[2][name]) for name in now)  # after update 2: mean 75, then 50
    assert not all(torch.equal(now[name], kept[4][name]) for name in now)
    best = session.run.folder / "best"
    assert {path.name for path in best.iterdir()} == {"a", "b", "_stage"}
    session.run.host.load(best / "b")
    assert all(torch.equal(t, kept[4][name]) for name, t in tensors(session.run).items())


def test_tasks_of_a_group_share_a_head_that_grows_and_keeps_its_rows(tmp_path):
    settings = ["tasks.a.group=g", "tasks.b.group=g", "tasks.a.names=['red','green']", "tasks.b.names=['blue']"]
    run = setup(config(tmp_path / "run", *settings, schedule="sequential", method="toy@shared"))
    loop, before = Loop(run, Quiet()), None
    for event in run.events():
        if isinstance(event, Begin) and event.stage == 1:
            before = run.host.head_of("a").weight.detach().clone()
        loop.do(event)
        if isinstance(event, Begin) and event.stage == 1:
            head = run.host.head_of("b")
            assert head is run.host.head_of("a") and head.classes == ("red", "green", "blue")
            assert torch.equal(head.weight[:2], before)
    assert before is not None
    assert run.matrix.cells[1, "a"].count == 9


def test_a_group_needs_a_method_that_can_do_without_the_task(tmp_path):
    with pytest.raises(UsageError, match="group"):
        setup(config(tmp_path / "run", "tasks.a.group=g", method="toy@task"))


class Recorder(Routine):
    def calibrate(self, context):
        self.moments = [f"calibrate {context.stage}/{context.stages} {','.join(context.seen)}"]
        name, images, targets = next(iter(context.batches()))
        self.moments.append(f"batch {name} {len(images)} loss {context.loss(name, images, targets) > 0}")

    def begin_stage(self, context):
        self.moments.append(f"begin {context.step}/{context.steps}")

    def begin_update(self, context):
        self.moments.append(f"update {context.step}")
        return False

    def penalty(self, context):
        self.moments.append(f"penalty {context.step}")
        return 0 * next(iter(context.host.trainable(context.tasks).values())).sum()

    def after_backward(self, context):
        self.moments.append(f"after {context.step}")

    def after_step(self, context):
        graded = next(iter(context.host.trainable(context.tasks).values())).grad is not None
        self.moments.append(f"stepped {context.step} with gradients {graded}")

    def end_stage(self, context):
        self.moments.append("end")


def test_routines_are_called_at_their_moments(tmp_path):
    run = setup(config(tmp_path / "run", "schedule.steps=2", "schedule.accumulate=2", tasks="a=colours"))
    run.host.routines["toy"] = recorder = Recorder(run.host.methods["toy"])
    Loop(run, Quiet()).train()
    assert recorder.moments == [
        "calibrate 0/1 a", "batch a 6 loss True", "begin 0/2",
        "update 0", "penalty 0", "penalty 0", "after 0", "stepped 0 with gradients True",
        "update 1", "penalty 1", "penalty 1", "after 1", "stepped 1 with gradients True", "end",
    ]  # fmt: skip


def test_a_method_scores_what_it_has_on_validation_samples(tmp_path):
    run = setup(config(tmp_path / "run", "seed=4"))
    loop = Loop(run, Quiet())
    loop.do(next(run.events()))
    context, opened = loop.stage.context, dict(run.data._opened)
    run.data._opened = {key: data for key, data in opened.items() if key[1] != "test"}
    run.tasks["a"].dataset = lambda split, seed: pytest.fail(f"it opened {split}")
    run.host.train()
    before = torch.get_rng_state()
    assert context.score("a", 100) == evaluate(run, "a", "val").value
    assert context.score("a", 4) in (0, 25, 50, 75, 100)
    assert run.host.training and torch.equal(torch.get_rng_state(), before)
    type(run.tasks["a"]).higher_is_better = False
    try:
        assert context.score("a", 100) == -evaluate(run, "a", "val").value
    finally:
        del type(run.tasks["a"]).higher_is_better
    assert context.seed == 4


def test_some_samples_are_spread_evenly_over_the_split(tmp_path, monkeypatch):
    run, asked = setup(config(tmp_path / "run")), []
    read = training_toy.Noise.__getitem__
    monkeypatch.setattr(training_toy.Noise, "__getitem__", lambda data, index: asked.append(index) or read(data, index))
    for most in (3, 9, 50):
        list(load(run, "a", "val", most=most))
    assert asked == [1, 4, 7, *range(9), *range(9)]


def test_the_optimizer_follows_what_a_method_trains(tmp_path):
    run = setup(config(tmp_path / "run", "schedule.steps=4", tasks="a=colours", method="shrinking@shared"))
    loop, before = Loop(run, Quiet()), {}
    for event in run.events():
        if isinstance(event, Batch) and loop.at.step == 2:
            moments = loop.stage.optimizer.state
            before = {name: moments[p]["exp_avg"].clone() for name, p in loop.stage.parameters.items()}
            loop.stage.begin_update()
            for name, parameter in loop.stage.parameters.items():
                kept = loop.stage.optimizer.state.get(parameter)
                assert (kept is None) == name.endswith(("/A", "/B"))
                assert kept is None or torch.equal(kept["exp_avg"], before[name])
        loop.do(event)
    assert before and {p.shape[0] for n, p in loop.stage.parameters.items() if n.endswith("/A")} == {1}
    held = {id(p) for group in loop.stage.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.host.trainable(["a"]).values()}


def test_observers_are_told(tmp_path):
    from mtpeft import plugins
    from mtpeft.api import hookimpl

    told = []

    class Observer:
        @hookimpl
        def run_started(self, run):
            told.append("started")

        @hookimpl
        def step_ended(self, stage, step, losses):
            told.append(f"step {step} {','.join(losses)}")

        @hookimpl
        def stage_ended(self, run, stage, tasks):
            told.append(f"stage {stage} {run.matrix.value(stage, tasks[0]) is not None}")

        @hookimpl
        def run_ended(self, run):
            told.append((run.folder / "results.json").exists())

    plugins.manager().register(Observer(), "observer")
    trained(tmp_path / "run", "schedule.steps=2")
    assert told == ["started", "step 0 a,b", "step 1 a,b", "stage 0 True", True]


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no such device"):
        setup(replace(config(tmp_path / "run"), device=device))


def test_a_task_without_samples_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(DataError, match='task "b" has no train samples'):
        Session.start(config(tmp_path / "run", "tasks.b.count=0"))
    assert list(tmp_path.iterdir()) == []
