"""Streams of stages that settings alone express: each sample is met once, and each class where it should be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from support.reader_samples import pictures

from mtpeft.config import Overrides, load
from mtpeft.training.run import Run
from mtpeft.training.setup import setup

CLASSES = tuple("abcdef")
DISJOINT, BLURRY = (("a",), ("b",)), (("c", "d"), ("e", "f"))
COUNT = 60

RECIPE = """
[[methods]]
name = "linear-probe"
[schedule]
stages = [["own-1", "major-1", "minor-2"], ["own-2", "major-2", "minor-1"]]
"""


def i_blurry(root: Path) -> Run:
    """Two stages: a third of the classes is met in one alone, and of the others 10 % come in the other stage."""
    pictures(root / "data", *(f"{name}/{number}.png" for name in CLASSES for number in range(COUNT)))
    lines = [RECIPE]
    for stage in (1, 2):
        kinds = {"own": (DISJOINT, "[1, 1]"), "major": (BLURRY, "[1, 9, 10]"), "minor": (BLURRY, "[10, 10]")}
        for kind, (classes, part) in kinds.items():
            lines.append(f'[tasks.{kind}-{stage}]\ntype = "cls"\ngroup = "all"\ndata = "folder:data"')
            lines.append(f"classes = {list(classes[stage - 1])}\npart = {part}\ndegenerate = 'allow'")
    (root / "stream.toml").write_text("\n".join(lines))
    return setup(load(root / "stream.toml", Overrides({"--backbone": "micro"})))


def test_a_blurry_stream(tmp_path: Path) -> None:
    run = i_blurry(tmp_path)
    stages = [["own-1", "major-1", "minor-2"], ["own-2", "major-2", "minor-1"]]
    assert [list(stage) for stage in run.schedule.stage_tasks(list(run.trained))] == stages
    met: list[Counter[str]] = []
    names: list[str] = []
    for stage in stages:
        parts = [run.dataset(task, "train") for task in stage]
        samples = [part[index].name for part in parts for index in range(len(part))]
        met.append(Counter(name[0] for name in samples))
        names += samples
    assert len(names) == len(set(names)) == sum(sum(counts.values()) for counts in met)
    each = {name: met[0][name] + met[1][name] for name in CLASSES}
    assert len(set(each.values())) == 1
    assert met[0]["b"] == met[1]["a"] == 0
    for place, blurry in enumerate(BLURRY):
        minor = sum(met[1 - place][name] for name in blurry)
        assert minor == sum(each[name] for name in blurry) // 10
