"""One name for two things: data, backbone or settings that are not what they were under the same name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support import training_toy
from support.training_toy import config, tiny

from mtpeft import files
from mtpeft.cli import main
from mtpeft.errors import DataError, MtpeftError
from mtpeft.training.manifest import first_difference
from mtpeft.training.session import Session


def make(root: Path) -> Path:
    """A folder of 32 px images without compression: each file is as large as any other."""
    for split in ("train", "val", "test"):
        for shade, label in enumerate(("dark", "light")):
            for number in range(4):
                path = root / split / label / f"{split}-{label}-{number}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (90 * shade + 9 * number, 20, 30)).save(path)
    return root


def added(data: Path, split: str) -> None:
    shutil.copy(data / split / "dark" / f"{split}-dark-0.bmp", data / split / "dark" / "new.bmp")


def removed(data: Path, split: str) -> None:
    (data / split / "dark" / f"{split}-dark-0.bmp").unlink()


def renamed(data: Path, split: str) -> None:
    path = data / split / "dark" / f"{split}-dark-0.bmp"
    path.rename(path.with_name("renamed.bmp"))


def label_moved(data: Path, split: str) -> None:
    path = data / split / "dark" / f"{split}-dark-0.bmp"
    path.rename(data / split / "light" / path.name)


def replaced(data: Path, split: str) -> None:
    """Another image of the same name, size and times."""
    path = data / split / "dark" / f"{split}-dark-0.bmp"
    before = path.stat()
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


CHANGES = [added, removed, renamed, label_moved, replaced]


def build(root: Path, out: str = "run", tasks: str = "a"):
    named = ",".join(f"{name}=cls@folder:{root / 'data'}" if name == "a" else f"{name}=colours" for name in tasks)
    return config(root / out, "schedule.steps=2", tasks=named)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    from mtpeft import plugins

    training_toy.register()
    root = tmp_path_factory.mktemp("trained")
    make(root / "data")
    Session.start(build(root)).train()
    plugins.reset()
    return root


@pytest.fixture
def root(trained, tmp_path) -> Path:
    """The run and its data at the place where they were made: a run knows its data by where it is."""
    kept = tmp_path / "kept"
    shutil.copytree(trained, kept)
    yield trained
    for place in trained.iterdir():
        shutil.rmtree(place)
    shutil.copytree(kept, trained, dirs_exist_ok=True)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_resume_refuses_changed_data_and_names_it(root, change, split):
    change(root / "data", split)
    with pytest.raises(DataError, match=rf'the {split} split of task "a" has changed since: .+') as caught:
        Session.resume(build(root))
    assert "put the data back" in caught.value.hint


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_eval_says_what_it_reads_and_warns_of_changed_data(root, change, capsys):
    assert main(["eval", str(root / "run"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == f'reads the data of "a": folder:{root / "data"}\n'
    assert "data_changed" not in json.loads(out)["tasks"][0]
    change(root / "data", "test")
    assert main(["eval", str(root / "run"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert 'warning: the test split of task "a" has changed since' in err
    assert json.loads(out)["tasks"][0]["data_changed"] is True


def test_eval_does_not_warn_of_what_it_does_not_read(root, capsys):
    added(root / "data", "train")
    assert main(["eval", str(root / "run"), "--json"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_from_refuses_changed_data_of_a_task_that_it_keeps(root):
    replaced(root / "data", "test")
    with pytest.raises(DataError, match='the test split of task "a" has changed since'):
        Session.start(build(root, "second", "b"), source=root / "run")
    assert not (root / "second").exists()


def test_from_warns_of_changed_data_of_a_task_that_it_trains_on(root):
    added(root / "data", "train")
    session = Session.start(build(root, "second", "ab"), source=root / "run")
    session.lock.release()
    assert any('the train split of task "a" has changed since: count was 8 and is 9' in c for c in session.run.caveats)


def test_files_beside_the_data_change_nothing(root):
    (root / "data" / "train" / "dark" / "notes.txt").write_text("mine")
    (root / "data" / "README").write_text("mine")
    Session.resume(build(root)).lock.release()


def other_tiny(image_size=None, pretrained=True):
    backbone = tiny(image_size, pretrained)
    backbone.norm.weight.data += 1e-3
    return backbone


@pytest.mark.parametrize("how", ["resume", "eval", "from"])
def test_another_backbone_under_the_same_name_is_refused(root, how, monkeypatch, capsys):
    monkeypatch.setattr(training_toy, "tiny", other_tiny)
    with pytest.raises(MtpeftError, match="with other weights"):
        if how == "resume":
            Session.resume(build(root))
        elif how == "from":
            Session.start(build(root, "second", "b"), source=root / "run")
        else:
            from mtpeft.training.setup import open_run

            open_run(root / "run")


@pytest.mark.parametrize(
    ("old", "new"), [('type = "cls"', 'type = "seg"'), ("seed = 0", "seed = 1"), ("steps = 2", "steps = 3")]
)
def test_a_configuration_that_was_edited_is_refused(root, old, new):
    path = root / "run" / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert main(["eval", str(root / "run")]) == 1
    with pytest.raises(MtpeftError):
        Session.resume(build(root))


def test_data_may_move_where_the_configuration_says_so(root, capsys):
    shutil.move(root / "data", root / "elsewhere")
    path = root / "run" / "config.toml"
    path.write_text(path.read_text().replace(str(root / "data"), str(root / "elsewhere")))
    assert main(["eval", str(root / "run")]) == 0
    assert "warning" not in capsys.readouterr().err


def test_another_version_is_a_note(root):
    path = root / "run" / "manifest.json"
    about = json.loads(path.read_text())
    about["versions"]["timm"] = "0.1"
    about["plugins"].append({"name": "gone", "package": "mtpeft-gone", "version": "3"})
    path.write_text(json.dumps(files.sealed(about)))
    session = Session.resume(build(root))
    session.lock.release()
    notes = [remark for remark in session.run.remarks if remark.startswith("the run was started with")]
    assert len(notes) == 2 and "timm 0.1, and here is" in notes[0] and "gone 3, and here is none" in notes[1]


@pytest.mark.parametrize("file", ["manifest.json", "results.json"])
def test_a_changed_value_in_a_sealed_file_is_refused(root, file):
    path = root / "run" / file
    path.write_text(path.read_text().replace('"train"', '"trian"', 1).replace('"cls"', '"seg"', 1))
    command = ["report", str(root / "run")] if file == "results.json" else ["eval", str(root / "run")]
    assert main(command) == 1


def test_results_without_a_seal_are_a_users_own(root, capsys):
    path = root / "run" / "results.json"
    data = json.loads(path.read_text())
    data["tasks"]["a"]["baseline"] = 90.0
    path.write_text(json.dumps(data))
    assert main(["report", str(root / "run")]) == 1
    assert 'goes without its "sha256"' in capsys.readouterr().err
    path.write_text(json.dumps(files.unsealed(data)))
    assert main(["report", str(root / "run")]) == 0


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"count": 1, "sha256": "a"}, {"count": 2, "sha256": "b"}, "count was 1 and is 2"),
        ({"sha256": "a"}, {"sha256": "b"}, "the content of a file or a label is another"),
        ({"from": {"sha256": "a"}}, {"from": {"sha256": "b"}}, "the content of a file or a label is another"),
        ({"histogram": {"x": 1}}, {"histogram": {"x": 1, "y": 2}}, "histogram.y was null and is 2"),
        ({"joined": [1, {"count": 2}]}, {"joined": [1, {"count": 3}]}, "joined.1.count was 2 and is 3"),
        ({"left_out": {"count": 1}}, {}, ""),
    ],
)
def test_the_first_difference_is_named(before, now, said):
    assert first_difference(before, now) == said


def test_every_decision_of_the_documents_has_its_test():
    root = Path(__file__).parents[2]
    table = (root / "docs" / "runs.md").read_text().split("## One name for two things")[1]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    named = {row[4].strip().strip("`") for row in rows}
    tests = "".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    missing = [name for name in named if name.startswith("test_") and f"def {name}(" not in tests]
    assert not missing and len(named) > 10
