"""eval, predict, report and export, on runs that were trained once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import training_toy

from mtpeft import plugins
from mtpeft.cli import main
from mtpeft.training.session import Session
from mtpeft.training.setup import open_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    training_toy.register()
    folder = tmp_path_factory.mktemp("trained")
    settings = ["schedule.steps=9", "schedule.eval_every=3"]
    Session.start(training_toy.config(folder / "run", *settings, schedule="sequential")).train()
    weights = folder / "vit.safetensors"
    torch.manual_seed(2)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=2)
    save_file(plain.state_dict(), weights)
    plugins.reset()
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", tmp_path / "run")
    return Path("run")


@pytest.fixture
def picture(tmp_path) -> Path:
    place = tmp_path / "pictures" / "one.png"
    place.parent.mkdir()
    training_toy.Noise("test", 3, ("red", "green", "blue"), 0)[1].image.save(place)
    return place


def test_eval_finds_the_metrics_of_the_run_again(capsys, run):
    assert main(["eval", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    results = json.loads((run / "results.json").read_text())
    last = {row["task"]: row for row in results["matrix"] if row["stage"] == 1}
    assert {row["task"]: row["value"] for row in again["tasks"]} == {name: row["value"] for name, row in last.items()}
    assert [row["detail"] for row in again["tasks"]] == [row["detail"] for row in last.values()]


def test_eval_takes_the_best_weights_of_each_task(capsys, run):
    assert main(["eval", str(run), "--best", "--split", "val", "--json"]) == 0
    best = {row["task"]: row["value"] for row in json.loads(capsys.readouterr().out)["tasks"]}
    log = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    seen = [entry for entry in log if entry["event"] == "evaluate" and entry["split"] == "val"]
    assert best == {name: max(e["value"] for e in seen if e["task"] == name) for name in ("a", "b")}


def test_eval_prints_a_table(capsys, run):
    assert main(["eval", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["task", "metric", "value", "unit", "count"]


def test_eval_draws_the_truth_above_the_predictions(capsys, run):
    assert main(["eval", str(run), "--pictures", "drawn"]) == 0 and "drawn" in capsys.readouterr().out
    names = list(open_run(run).host.tasks)
    assert sorted(file.name for file in Path("drawn").iterdir()) == sorted(f"{name}.jpg" for name in names)
    for file in Path("drawn").iterdir():
        with Image.open(file) as picture:
            assert picture.width > 6 * 32 and picture.height > 2 * 32
    assert main(["eval", str(run), "--pictures", "drawn"]) == 2 and "exists already" in capsys.readouterr().err


def test_predictions_are_json_and_pictures_with_class_names(capsys, run, picture):
    (picture.parent / "notes.txt").write_text("no image")
    deeper = picture.parent / "deeper"
    deeper.mkdir()
    shutil.copy(picture, deeper / "one.png")
    assert main(["predict", str(run), str(picture.parent), "--task", "a", "--out", "found", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in printed["predictions"]] == [str(deeper / "one.png"), str(picture)]
    assert {row["class"] for row in printed["predictions"]} <= {"red", "green", "blue"}
    stored = json.loads(Path("found/predictions.json").read_text())
    assert stored["predictions"] == printed["predictions"] and stored["classes"] == ["red", "green", "blue"]
    assert sorted(path.name for path in Path("found").iterdir()) == ["one.2.png", "one.png", "predictions.json"]


def test_report_reads_folders_and_files(capsys, run):
    assert main(["report", str(run)]) == 0
    assert "forgetting" in capsys.readouterr().out
    assert main(["report", str(run / "results.json"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((run / "results.json").read_text())["summary"]
    shutil.copytree(run, "other")
    assert main(["report", str(run), "other"]) == 0
    assert "other" in capsys.readouterr().out
    assert main(["report", str(run), "other", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": summary, "other": summary}


def trained_on_timm(trained: Path, folder: Path, monkeypatch) -> Path:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, depth=2, **more))
    settings = ["backbone=vit_tiny_patch16_224", f"weights={trained / 'vit.safetensors'}", "image_size=32"]
    Session.start(training_toy.config(folder, *settings, tasks="a=colours")).train()
    return folder


def test_an_exported_checkpoint_gives_the_same_logits_in_plain_timm(capsys, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = trained_on_timm(trained, tmp_path / "real", monkeypatch)
    assert main(["export", str(folder), "--to", "timm", "--out", "merged.safetensors", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["classes"] == ["red", "green", "blue"] and about["num_classes"] == 3
    note = Path("merged.txt").read_text()
    assert 'timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=(32, 32), checkpoint_path=' in note
    found: dict = {}
    exec(note, found)
    images = torch.rand(4, 3, 32, 32)
    opened = open_run(folder)
    with torch.no_grad():
        mine = opened.host.predict(images, "a")
        plain = found["model"].eval()(images)
    torch.testing.assert_close(plain, mine, atol=1e-5, rtol=0)


def test_what_timm_does_not_know_is_exported_without_head(capsys, run):
    assert main(["export", str(run), "--task", "b", "--out", "b.safetensors"]) == 0
    out = capsys.readouterr().out
    assert 'mtpeft.create_backbone("tiny"' in out and "without a head" in out
    plain = training_toy.tiny()
    before = plain.state_dict()
    merged = load_file("b.safetensors")
    assert any(not torch.equal(merged[name], before[name]) for name in before)
    plain.load_state_dict(merged)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), open_run(run).host(images, "b").pooled, atol=1e-5, rtol=0)


def refused(capsys, *command: str) -> str:
    code = main(list(command))
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    return f"{code} {err.splitlines()[0].removeprefix('error: ')}"


def test_bad_input_is_one_sentence(capsys, run, picture):
    name, broken = str(run), picture.parent / "broken.png"
    broken.write_bytes(picture.read_bytes()[:60])
    assert refused(capsys, "eval", "nowhere").startswith('1 "nowhere" is no run')
    assert refused(capsys, "eval", name, "--split", "tset") == '2 there is no split "tset"'
    assert refused(capsys, "report", "nowhere").startswith('1 there is no "nowhere"')
    predict = ["predict", name, "--task", "a"]
    assert "cannot be read as an image" in refused(capsys, *predict, str(broken), "--out", "found")
    assert not Path("found").exists()
    assert refused(capsys, *predict, "absent.png").startswith('1 there is no image "absent.png"')
    assert refused(capsys, "predict", name, "--task", "c", str(picture)) == '2 "run" has no task "c"'
    assert "exists already" in refused(capsys, *predict, str(picture), "--out", str(picture.parent))
    assert refused(capsys, "export", name, "--to", "nonsense") == '2 there is no exporter "nonsense"'
    assert refused(capsys, "export", name).startswith("2 this run has several tasks")
    assert refused(capsys, "export", name, "--task", "c") == '2 this run has no task "c"'
    (run / "export").mkdir()
    (run / "export" / "a.txt").write_text("mine")
    assert "exists already" in refused(capsys, "export", name, "--task", "a")


def test_a_method_that_does_not_merge_says_why(capsys, run, monkeypatch):
    monkeypatch.setattr(training_toy.Dropped, "input_dependent", True)
    assert "its update depends on the input" in refused(capsys, "export", str(run), "--task", "a")
    assert not (run / "export").exists()


def test_a_truncated_adapter_is_one_sentence(capsys, run):
    file = run / "adapter" / "task.a.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert "truncated or damaged" in refused(capsys, "eval", str(run))


def test_another_backbone_is_refused(capsys, run, monkeypatch):
    tiny = training_toy.tiny

    def other(image_size=None, pretrained=True):
        model = tiny(image_size)
        torch.nn.init.ones_(model.norm.weight.mul_(2).data)
        model.norm.weight.data.mul_(3)
        return model

    monkeypatch.setattr(training_toy, "tiny", other)
    with torch.no_grad():
        assert "with other weights" in refused(capsys, "eval", str(run))
