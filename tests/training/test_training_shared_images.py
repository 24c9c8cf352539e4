"""Training and evaluating tasks that label the same images: one pass for all heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.training_toy import config

from mtpeft.cli import main
from mtpeft.errors import DataError, UsageError
from mtpeft.peft.running import Running
from mtpeft.schedule import Batch, Update
from mtpeft.training.evaluate import evaluate, evaluate_together
from mtpeft.training.loop import Loop
from mtpeft.training.progress import Quiet
from mtpeft.training.session import Session
from mtpeft.training.setup import open_run, setup

SHARED = ("tasks.a.images=x", "tasks.b.images=x", "tasks.b.count=12", "tasks.a.batch_size=8", "tasks.b.batch_size=8")


def trained(folder: Path, *more: str, **choices: str) -> Session:
    session = Session.start(config(folder, *SHARED, *more, **choices))
    session.train()
    return session


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "adapter").glob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def no_dropout(monkeypatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *rest, **more: x)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)


def first_update(folder: Path, *more: str, **choices: str) -> tuple[Loop, dict[str, torch.Tensor], list]:
    """The loop, the gradients of its first update, and the batches they are of."""
    run = setup(config(folder, *SHARED, "optimizer.clip_norm=0.0", *more, **choices))
    loop, seen = Loop(run, Quiet()), []
    for event in run.events():
        if isinstance(event, Update):
            break
        loop.do(event)
        seen += [loop.stage.context.batch] if isinstance(event, Batch) else []
    return loop, {n: p.grad.clone() for n, p in loop.stage.parameters.items() if p.grad is not None}, seen


def blocks_called(loop: Loop, call) -> list[int]:
    """The samples of each call of the first block meanwhile."""
    rows: list[int] = []
    handle = loop.run.host.backbone.blocks[0].register_forward_hook(lambda module, x, y: rows.append(len(y)))
    call()
    handle.remove()
    return rows


def test_an_update_takes_one_pass_of_its_images(tmp_path):
    loop, _, _ = first_update(tmp_path / "run", method="toy@shared")
    batches = [event for event in loop.run.events() if isinstance(event, Batch)]
    assert blocks_called(loop, lambda: loop.do(batches[1])) == [8]
    assert loop.at.images == 16 and loop.at.drawn == {"images:x": 16}


def test_each_task_has_the_mean_loss_of_the_images_it_labels(tmp_path, no_dropout):
    loop, found, [batch] = first_update(tmp_path / "run", method="toy@shared")
    by_task, host = {one.task: one for one in batch}, loop.run.host
    assert len(by_task["a"].images) == 8 > len(by_task["b"].images) > 0
    assert all(one.keys == tuple((one.task, index) for _, index in one.keys) for one in batch)
    host.zero_grad(set_to_none=True)
    total = sum(loop.stage.loss(name, one.images, one.targets) for name, one in by_task.items())
    total.backward()
    assert found.keys() == loop.stage.parameters.keys()
    for name, parameter in loop.stage.parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_images_of_a_batch_are_the_same_for_all_tasks(tmp_path):
    _, _, [batch] = first_update(tmp_path / "run")
    rows = {one.task: {index: image for (_, index), image in zip(one.keys, one.images, strict=True)} for one in batch}
    assert set(rows["b"]) <= set(rows["a"])
    assert all(torch.equal(rows["a"][index], image) for index, image in rows["b"].items())


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_changes_nothing_though_targets_are_missing(tmp_path, no_dropout, parts):
    loop, whole, _ = first_update(tmp_path / "1")
    other, cut, _ = first_update(tmp_path / "2", f"schedule.accumulate={parts}")
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)
    assert other.stage.losses == pytest.approx(loop.stage.losses, rel=1e-5)


def test_other_tasks_stand_in_the_same_batch(tmp_path, no_dropout):
    choices = {"tasks": "a=colours,c=colours,b=colours", "method": "toy@shared"}
    loop, found, [batch] = first_update(tmp_path / "run", **choices)
    assert {one.task for one in batch} == {"a", "b", "c"} and loop.at.images == 14
    loop.run.host.zero_grad(set_to_none=True)
    sum(loop.stage.loss(one.task, one.images, one.targets) for one in batch).backward()
    for name, parameter in loop.stage.parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", ["proportional", "round-robin", "mixed"])
def test_a_schedule_that_draws_one_of_the_tasks_trains_all(tmp_path, sampler):
    session = trained(tmp_path / "run", f"schedule.sampler={sampler}", schedule="interleaved")
    logged = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    updates = [entry for entry in logged if entry["event"] == "update"]
    assert len(updates) == 6 and all(set(entry["losses"]) == {"a", "b"} for entry in updates)
    assert session.loop.at.images == 48


def test_what_is_alone_in_its_stage_trains_as_it_does_without(tmp_path):
    settings = [setting for setting in SHARED if "images" not in setting]
    Session.start(config(tmp_path / "own", *settings, schedule="sequential")).train()
    trained(tmp_path / "shared", schedule="sequential")
    assert same(tensors(tmp_path / "own"), tensors(tmp_path / "shared"))


@pytest.mark.parametrize("setting", ["workers=2", "cache=CACHE"])
def test_workers_and_cache_change_nothing(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(
        "support.training_toy.Noise.manifest", lambda self: {"sha256": self.split, "count": len(self)}, raising=False
    )
    trained(tmp_path / "one")
    for _ in range(2):  # a cache that is empty, and one that is full
        trained(tmp_path / "other", setting.replace("CACHE", str(tmp_path / "cache")))
        assert same(tensors(tmp_path / "one"), tensors(tmp_path / "other"))
        (tmp_path / "other").rename(tmp_path / "filled") if not (tmp_path / "filled").exists() else None


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, after):
    settings = ("schedule.accumulate=2", "output.save_every=1")
    trained(tmp_path / "whole", *settings)
    session = Session.start(config(tmp_path / "cut", *SHARED, *settings))
    update, count = session.loop.update, iter(range(after, -1, -1))

    def pressed(event):
        update(event)
        session.signals.wanted = 2 * (next(count) == 0)

    session.loop.update = pressed
    with pytest.raises(KeyboardInterrupt):
        session.train()
    Session.resume(config(tmp_path / "cut", *SHARED, *settings)).train()
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))


@pytest.mark.parametrize("method", ["toy@shared", "toy@task"])
def test_one_evaluation_for_all_heads_gives_the_scores_of_each(tmp_path, method):
    run = trained(tmp_path / "run", method=method).run
    loop = Loop(run, Quiet())
    alone = {name: evaluate(run, name, "test") for name in ("a", "b")}
    for size in (1, 4, 9):
        assert evaluate_together(run, ("a", "b"), "test", batch_size=size) == alone
    assert blocks_called(loop, lambda: evaluate_together(run, ("a", "b"), "test")) == [8, 1] or method == "toy@task"
    assert {name: run.matrix.value(0, name) for name in alone} == {n: s.value for n, s in alone.items()}


def test_eval_and_predict_run_what_is_shared_once(tmp_path, capsys, monkeypatch):
    trained(tmp_path / "run", method="toy@shared")
    run = str(tmp_path / "run")
    assert main(["eval", run, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tasks"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())["matrix"]
    assert {row["task"]: row["value"] for row in rows} == {row["task"]: row["value"] for row in results}
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        open_run(Path(run)).dataset("a", "test")[index].image.save(tmp_path / "pictures" / f"{index}.png")
    passes, inner = [], Running._pass

    def counted(self: Running, images: torch.Tensor, *rest, **more):
        passes.append(len(images))
        return inner(self, images, *rest, **more)

    monkeypatch.setattr(Running, "_pass", counted)
    found = {}
    for tasks in ("a", "b", "a,b"):
        out = tmp_path / tasks
        assert main(["predict", run, str(tmp_path / "pictures"), "--task", tasks, "--out", str(out), "--json"]) == 0
        found[tasks] = json.loads(capsys.readouterr().out)
    assert found["a,b"]["tasks"] == [{"task": n, "predictions": found[n]["predictions"]} for n in ("a", "b")]
    assert sorted(path.name for path in (tmp_path / "a,b" / "b").iterdir()) == ["0.png", "1.png", "predictions.json"]
    assert passes.count(2) == 3  # one for each command; the others prove the parts


REFUSED = {
    "their batch sizes differ (a: 8, b: 4)": ["tasks.b.batch_size=4"],
    "wants the gradient of each task": [],
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_do_not_go_together_are_refused(tmp_path, monkeypatch, message):
    from mtpeft_plugins.balancing.equal import Equal

    monkeypatch.setattr(Equal, "needs_task_gradients", "gradient" in message)
    with pytest.raises(UsageError) as caught:
        setup(config(tmp_path / "run", *SHARED, *REFUSED[message]))
    assert message in caught.value.message and caught.value.hint


def test_tasks_without_a_common_image_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("support.training_toy.Noise.origin", lambda self, index: f"{id(self)} {index}", raising=False)
    with pytest.raises(DataError, match="the tasks a, b have no image in common"):
        setup(config(tmp_path / "run", *SHARED))


def test_a_shared_method_trains_for_real(tmp_path):
    session = trained(tmp_path / "run", "schedule.steps=60", method="toy@shared")
    assert min(session.run.matrix.value(0, name) for name in "ab") > 60
