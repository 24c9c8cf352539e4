from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from mtpeft import files
from mtpeft.cli import main

TRAIN = ["train", "--tasks", "a=colours,b=colours", "--method", "toy@task", "--backbone", "tiny", "--steps", "4"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_summary_goes_to_stdout_and_the_rest_to_stderr(capsys):
    assert main([*TRAIN, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "forgetting" in out and "parameters" in out and out.endswith("run          run\n")
    assert "stage 1: a, b; 4 updates" in err and "test a: " in err


def test_json_is_the_results_and_nothing_else(capsys):
    assert main([*TRAIN, "--out", "run", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert err == ""
    assert printed.pop("run") == "run" and printed.pop("caveats") == []
    assert files.sealed(printed) == json.loads(Path("run/results.json").read_text())


def test_runs_have_names_and_numbers_of_their_own(capsys):
    assert main([*TRAIN, "--quiet"]) == main([*TRAIN, "--quiet"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a-b-toy", "a-b-toy-2"]


def test_a_run_folder_that_exists_is_wrong_usage(capsys):
    Path("run").mkdir()
    Path("run/mine").write_text("precious")
    assert main([*TRAIN, "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert 'error: "run" exists already, and nothing is overwritten\n\nhint: continue it: mtpeft train --resume' in err
    assert [path.name for path in Path("run").iterdir()] == ["mine"]


def test_the_configuration_of_a_run_gives_the_run_again(capsys):
    main([*TRAIN, "--out", "first", "--quiet"])
    assert main(["train", "first/config.toml", "--out", "second", "--quiet"]) == 0
    for file in Path("first/adapter").glob("*.safetensors"):
        assert file.read_bytes() == Path("second/adapter", file.name).read_bytes()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(capsys):
    assert main([*TRAIN, "--out", "run", "--dry-run", "--schedule", "sequential"]) == 0
    out = capsys.readouterr().out
    assert "blocks.0.attn.q" in out and "task b       128 parameters" in out
    assert "stage 2      b: 4 updates" in out and "one update" in out
    assert list(Path().iterdir()) == []


def test_a_dry_run_counts_what_the_run_counts(capsys):
    main([*TRAIN, "--dry-run", "--json"])
    report = json.loads(capsys.readouterr().out)
    main([*TRAIN, "--out", "run", "--json", "--quiet"])
    results = json.loads(capsys.readouterr().out)
    assert report["parameters"] == results["costs"]["parameters"]
    assert report["adapter_bytes"] == 4 * (2 * 128 + 2 * 51)
    assert report["stages"] == [{"stage": 0, "tasks": ["a", "b"], "updates": 4}]
    assert report["update_seconds"] > 0


def test_the_learning_rates_in_use_are_told_and_kept(capsys):
    """A recipe need not name them: then they are the method's own, which another version may change."""
    rates = ["--set", "optimizer.lr=0.01", "--set", "optimizer.head_lr=0.5", "--set", "optimizer.warmup=0.25"]
    main([*TRAIN, *rates, "--dry-run"])
    assert "toy 0.01, heads 0.5; warm-up 25% of a stage, then cosine" in capsys.readouterr().out
    main([*TRAIN, *rates, "--out", "run", "--quiet"])
    kept = json.loads(Path("run/manifest.json").read_text())["learning_rates"]
    assert kept == {"methods": {"toy": 0.01}, "heads": 0.5}


def test_ctrl_c_says_how_to_resume_and_resume_finishes(capsys, monkeypatch):
    from mtpeft.training.loop import Loop

    update = Loop.update

    def pressed(self, event):
        if event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, event)

    monkeypatch.setattr(Loop, "update", pressed)
    assert main([*TRAIN, "--out", "run", "--quiet"]) == 130
    assert "mtpeft train --resume --out run" in capsys.readouterr().err
    monkeypatch.setattr(Loop, "update", update)
    assert main(["train", "--resume", "--out", "run", "--quiet"]) == 0
    assert "forgetting" in capsys.readouterr().out


def test_starting_from_a_run_keeps_its_tasks(capsys):
    one = ["train", "--method", "toy@task", "--backbone", "tiny", "--steps", "2", "--quiet", "--json"]
    main([*one, "--tasks", "a=colours", "--out", "first"])
    capsys.readouterr()
    assert main([*one, "--tasks", "b=colours", "--out", "second", "--from", "first"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--method", "tov"], 2, 'there is no method "tov"'),
        (["--tasks", "a=colour"], 2, 'there is no task type "colour"'),
        (["--backbone", "tinny"], 2, '"tinny"'),
        (["--set", "tasks.a.cuont=3"], 2, "there is no setting tasks.a.cuont"),
        (["--weights", "nowhere.safetensors"], 2, "brings its own weights"),
        (["--from", "nowhere"], 1, '"nowhere" is no run'),
    ],
)
def test_bad_input_is_one_sentence_with_a_hint(capsys, flags, code, sentence):
    flag = flags[0]
    others = [*TRAIN[: TRAIN.index(flag)], *TRAIN[TRAIN.index(flag) + 2 :]] if flag in TRAIN else TRAIN
    assert main([*others, "--out", "run", *flags]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and sentence in err and "\n\nhint: " in err and "Traceback" not in err
    assert not Path("run").exists()
