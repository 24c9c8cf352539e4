"""Reading a data set through, sample by sample: everything that is in it, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mtpeft.data.label_checks import Allowed, label_errors, listed, unlearned, unshown
from mtpeft.data.reader import open_reader
from mtpeft.errors import DataError, MtpeftError
from mtpeft.inspection.choice import ReaderChoice
from mtpeft.inspection.duplicates import Print, Twins, find_twins, fingerprint
from mtpeft.plugins import resolve
from mtpeft.task import SPLITS, Dataset, Sample, Split, Task

Progress = Callable[[str, int, int], None]
"""Told of the split, the samples read, and how many there are."""
Findings = dict[str, str]
"""Messages, each with its hint; none stands twice."""


@dataclass
class SplitSurvey:
    """What one split holds.

    Attributes:
        unreadable: samples that could not be read.
        empty: the names of the samples without any label.
        sizes: width and height of each image that could be read.
    """

    data: Dataset
    manifest: dict[str, Any]
    unreadable: int = 0
    empty: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    prints: list[Print] = field(default_factory=list)

    @property
    def histogram(self) -> dict[str, int]:
        """How often each class is shown; empty where the data does not say."""
        return dict(self.manifest.get("histogram", {}))

    def to_json(self) -> dict[str, Any]:
        return {
            "images": len(self.data),
            "unreadable": self.unreadable,
            "empty": len(self.empty),
            "sha256": self.manifest.get("sha256"),
            "histogram": self.histogram,
            "sizes": size_statistics(self.sizes),
        }


@dataclass
class Survey:
    """A data set as one task type sees it.

    Attributes:
        errors: what training fails at, or would not forgive; ``{message: hint}``.
        warnings: what may be meant.
        twins: images that are there twice.
    """

    choice: ReaderChoice
    type: str
    task: Task
    splits: dict[str, SplitSurvey] = field(default_factory=dict)
    errors: Findings = field(default_factory=dict)
    warnings: Findings = field(default_factory=dict)
    twins: list[Twins] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        return next((split.data.classes for split in self.splits.values()), ())

    @property
    def histograms(self) -> dict[str, dict[str, int]]:
        """Of the splits that say how often they show each class."""
        return {name: split.histogram for name, split in self.splits.items() if split.histogram}

    def add(self, error: MtpeftError) -> None:
        self.errors.setdefault(error.message, error.hint)

    def sample(self, split: str, index: int) -> Sample:
        """A sample whose target names its classes.

        Raises:
            DataError: if it cannot be read.
        """
        data = self.splits[split].data
        found = data[index]
        return Sample(found.image, {"classes": data.classes, **found.target}, found.name)

    def to_json(self) -> dict[str, Any]:
        """Plain values: counts, histograms, sizes, duplicates and findings."""
        return {
            "data": self.choice.data,
            "reader": self.choice.address.reader,
            "recognised": list(self.choice.recognised),
            "type": self.type,
            "other_types": [name for name in self.choice.types if name != self.type],
            "classes": list(self.classes),
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "duplicates": [vars(twins) for twins in self.twins],
            "errors": _as_list(self.errors),
            "warnings": _as_list(self.warnings),
        }


def survey(choice: ReaderChoice, *, seed: int = 0, progress: Progress = lambda split, done, total: None) -> Survey:
    """Read every sample of every split.

    Of several task types that learn from the data, the first takes it whose target it holds.

    Args:
        seed: of splits that are held out of the training data.
    """
    tried = [_opened(choice, type, seed) for type in choice.types[:1]]
    for type in choice.types[1:]:
        if tried[-1].splits:
            break
        tried.append(_opened(choice, type, seed))
    found = next((each for each in tried if each.splits), tried[0])
    for name in found.splits:
        _read(found, name, progress)
    found.twins = find_twins({name: split.prints for name, split in found.splits.items()})
    _judge(found)
    return found


def _opened(choice: ReaderChoice, type: str, seed: int) -> Survey:
    """The splits as the reader gives them, with all that it complains of."""
    found = Survey(choice, type, resolve("tasks", type)(data=choice.data))
    for split in SPLITS:
        reader, place = open_reader(choice.data)
        reader.found = []
        try:
            data = reader.read(place, cast(Split, split), gives=found.task.gives, seed=seed)
            if len(data):
                found.splits[split] = SplitSurvey(data, data.manifest())
            else:
                reader.found.append(DataError(f'"{choice.data}" has no samples for the split "{split}"'))
        except MtpeftError as error:
            found.add(error)
        for complaint in reader.found:
            found.add(complaint)
        found.warnings |= {remark.message: remark.hint for remark in reader.noticed}
    return found


def _read(found: Survey, name: str, progress: Progress) -> None:
    """Decode the images of a split, once each, and look at their targets."""
    split = found.splits[name]
    for index in range(len(split.data)):
        try:
            sample = found.sample(name, index)
        except MtpeftError as error:
            split.unreadable += 1
            found.add(error)
            continue
        for fault in found.task.faults(sample):
            found.add(DataError(f'"{sample.name}" ({name}): {fault}', hint="correct its label"))
        if found.task.empty(sample.target):
            split.empty.append(sample.name)
        split.sizes.append(sample.image.size)
        split.prints.append(fingerprint(sample.name, sample.image))
        progress(name, index + 1, len(split.data))


def _judge(found: Survey) -> None:
    """What follows from the whole: classes, empty samples and duplicates."""
    for error in label_errors("the data", found.histograms, Allowed.by(found.task)):
        found.add(error)
    told = {*unshown(found.histograms), *(name for names in unlearned(found.histograms).values() for name in names)}
    for name, split in found.splits.items():
        lacking = [label for label, count in split.histogram.items() if not count and label not in told]
        if lacking and len(lacking) < len(split.histogram):
            found.warnings[f"{name} has no sample of {listed(lacking)}"] = "its score there is undefined"
        if split.empty:
            message = f"{len(split.empty)} of {len(split.data)} images of {name} have no label: {listed(split.empty)}"
            found.warnings[message] = "right only if they show nothing to be found"
    for twins in found.twins:
        if twins.of != twins.also:
            _judge_twins(found, twins)


def _judge_twins(found: Survey, twins: Twins) -> None:
    """Copies in training and test make a score worthless; other copies between splits are worth a look."""
    learned = {twins.of, twins.also} == {"train", "test"}
    for kind, pairs in (("with the pixels", twins.exact), ("almost the same as those", twins.near)):
        if not pairs:
            continue
        mine, other = pairs[0]
        message = f'{twins.of} has {len(pairs)} images {kind} of {twins.also}, such as "{mine}" and "{other}"'
        findings = found.errors if learned and pairs is twins.exact else found.warnings
        findings[message] = f"leave them out of {twins.also}, or the score of {twins.of} says too much"


def size_statistics(sizes: Sequence[tuple[int, int]]) -> dict[str, list[float]]:
    """``{"width" | "height" | "aspect": [least, median, most]}``; aspect is width / height. Empty for no image."""
    if not sizes:
        return {}
    columns: Mapping[str, list[float]] = {
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "aspect": [round(width / height, 3) for width, height in sizes],
    }
    return {name: [min(values), sorted(values)[len(values) // 2], max(values)] for name, values in columns.items()}


def _as_list(findings: Findings) -> list[dict[str, str]]:
    return [{"message": message, "hint": hint} for message, hint in findings.items()]
