"""Every file of a run changed in many ways: refused in one sentence, or nothing is different."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import damaged_runs as damaged

from mtpeft import plugins


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    from support.training_toy import register

    register()
    folder = damaged.train(tmp_path_factory.mktemp("whole") / "run")
    plugins.reset()
    return folder


def test_a_flipped_bit_in_a_finished_adapter_is_refused_or_changes_nothing(whole, tmp_path):
    reference, random, seen = damaged.read_by_load(whole), Random(0), Counter()
    files = sorted((whole / "adapter").iterdir())
    for number in range(200):
        folder = tmp_path / str(number)
        shutil.copytree(whole / "adapter", folder / "adapter")
        path = folder / "adapter" / random.choice(files).name
        damaged.flip(path, random)
        said = damaged.outcome(damaged.read_by_load, folder, reference)
        assert said in ("refused", "same"), f"{path.name}: {said}"
        seen[said] += 1
        shutil.rmtree(folder)
    assert seen["refused"] > 190  # the others are spaces in adapter.json


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("seed", range(16))
def test_a_changed_run_is_refused_in_one_sentence_or_reads_the_same(seed, whole, references, tmp_path):
    random, folder = Random(seed), tmp_path / "run"
    shutil.copytree(whole, folder)
    name, believed = damaged.change(folder, random)
    for way, read in damaged.READERS.items():
        references[way] = references[way] if way in references else read(whole)
        said = damaged.outcome(read, folder, references[way])
        assert not said.startswith("raw"), f"{way} of {name}: {said}"
        assert believed or said != "other", f"{way} of {name}"


@pytest.mark.parametrize("file", ["config.toml", "manifest.json", "adapter/adapter.json", "adapter/task.a.safetensors"])
def test_a_missing_file_is_named(file, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    with pytest.raises(damaged.MtpeftError) as caught:
        damaged.read_by_open(tmp_path / "run")
    assert Path(file).name in caught.value.message or "is no run" in caught.value.message
