"""``mtpeft export``: the parts of a task merged into the backbone."""

from __future__ import annotations

from pathlib import Path

from mtpeft.commands.output import print_json
from mtpeft.errors import UsageError, did_you_mean
from mtpeft.export.merged import merged
from mtpeft.training.run import Run
from mtpeft.training.run_files import refuse_existing
from mtpeft.training.setup import open_run


def run(folder: Path, *, to: str, out: Path | None, task: str | None, json: bool) -> None:
    """Write a checkpoint that plain timm loads, and a note how.

    Raises:
        UsageError: for an unknown format, an unknown task or none where there are several, or a file that exists.
        NotApplicable: if the methods cannot be merged, and why.
    """
    if to != "timm":
        raise UsageError(f'"{to}" is no format to export to', hint=did_you_mean(to, ["timm"]))
    opened = open_run(folder)
    name = _choose(opened, task)
    out = out or folder / "export" / f"{name}.safetensors"
    note = out.with_suffix(".txt")
    for path in (out, note):
        refuse_existing(path, hint="give another --out")
    exported = merged(opened, name)
    exported.write(out, note)
    if json:
        print_json({"file": str(out), "note": str(note), "task": name, **exported.about})
    else:
        print(exported.how(out))


def _choose(opened: Run, task: str | None) -> str:
    tasks = opened.host.tasks
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task is None:
        raise UsageError("this run has several tasks, and one is merged at a time", hint=f"--task {' | '.join(tasks)}")
    if task not in tasks:
        raise UsageError(f'this run has no task "{task}"', hint=did_you_mean(task, tasks))
    return task
