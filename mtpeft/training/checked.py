"""The fast part of looking at data, before anything is trained: no image is decoded for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtpeft.inspection.labels import label_errors

if TYPE_CHECKING:
    from mtpeft.training.run import Run


def check_data(run: Run) -> None:
    """Open every split that the run may see; readers check what they read, and the counts of classes are checked here.

    Raises:
        DataError: for data that a reader refuses, a split without labels, or a class that is never shown in training.
    """
    for name, task in run.tasks.items():
        splits = {split: run.dataset(name, split) for split in run.splits}
        if not task.data:
            continue  # the embedded data is as it should be
        manifests = {split: data.manifest() for split, data in splits.items()}
        shown = {split: about["histogram"] for split, about in manifests.items() if "histogram" in about}
        for error in label_errors(f'task "{name}"', shown, allow_missing=task.missing_classes == "allow"):
            raise error
