"""``hf:NAME``: classification from Hugging Face ``datasets`` (the extra ``hf``).

NAME is a folder that ``save_to_disk`` wrote, a folder that ``load_dataset`` reads, or ``hf://NAME`` for a name on the
hub, which is fetched once. The column ``image`` holds images and ``label`` a class, or a list of classes. Missing
splits are held out of the training images: 20 % for test, 10 % for validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from PIL import Image

from mtpeft.api import DataError, did_you_mean
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.labels import Entry, Found, LabelReader, Source, labels_of

_HUB = "hf://"
_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Rows(Source):
    """Rows with images; ``train/12`` is the one at 12 of the split ``train``."""

    sets: Mapping[str, Any] = field(repr=False)
    column: str

    def image(self, path: str) -> Image.Image:
        return files.loaded(path, lambda: self._decoded(path))

    def _decoded(self, path: str) -> Image.Image:
        split, _, index = path.partition("/")
        image = self.sets[split][int(index)][self.column]
        if image is None:
            raise OSError("it is missing")
        return image


@dataclass
class HuggingFace(LabelReader):
    """Classification from Hugging Face datasets: a folder or a name on the hub.

    Attributes:
        image: the column of images.
        label: the column of labels.
        config: the configuration of a data set that has several.
    """

    gives: ClassVar[tuple[str, ...]] = ("label", "labels")

    image: str = "image"
    label: str = "label"
    config: str = ""

    def find(self, path: str) -> Found:
        library = _library()
        splits = _splits(path, self._opened(library, path))
        for name, data in splits.items():
            _check_tables(f'"{path}", split {name}', data)
            self._check_columns(library, f'"{path}", split {name}', data.features)
        classes = _names(library, splits["train"].features[self.label])
        entries = {name: self._entries(path, name, data, classes) for name, data in splits.items()}
        images = {name: data.select_columns(self.image) for name, data in splits.items()}
        return Found(Rows(images, self.image), entries, classes, path)

    def recognises(self, path: Path) -> bool:
        """A folder that ``save_to_disk`` wrote."""
        return _is_saved(path)

    def _opened(self, library: ModuleType, path: str) -> Any:
        place = Path(path).expanduser()
        try:
            if _is_saved(place):
                return library.load_from_disk(str(place))
            return library.load_dataset(
                path.removeprefix(_HUB) if path.startswith(_HUB) else str(place), self.config or None
            )
        except Exception as error:  # a builder may raise anything
            message = f'"{path}" cannot be loaded by datasets: {files.reason(error)}'
            raise DataError(message, hint="check the name, ?config=NAME, and that the hub can be reached") from error

    def _check_columns(self, library: ModuleType, where: str, features: Mapping[str, Any]) -> None:
        fitting = {
            "image": [name for name, feature in features.items() if isinstance(feature, library.Image)],
            "label": [name for name, feature in features.items() if _has_labels(library, feature)],
        }
        for option, column in (("image", self.image), ("label", self.label)):
            if column not in fitting[option]:
                what = f"holds no {option}s" if column in features else "does not exist"
                hint = f"{did_you_mean(column, fitting[option])} Another is named with ?{option}=COLUMN."
                raise DataError(f'{where}: the column "{column}" {what}', hint=hint)

    def _entries(self, path: str, split: str, data: Any, classes: tuple[str, ...] | None) -> list[Entry]:
        entries = []
        for index, value in enumerate(data.select_columns(self.label)[:][self.label]):
            where = f'"{path}", {split}/{index}'
            labels = self.attempt(_labels, value, classes, where)
            if labels is not None:
                entries.append(Entry(f"{split}/{index}", labels, where))
        return entries


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise DataError('the reader "hf" needs Hugging Face datasets', hint="pip install 'mtpeft[hf]'") from None
    return datasets


def _is_saved(place: Path) -> bool:
    return any((place / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _splits(path: str, data: Any) -> dict[str, Any]:
    """The data of the splits that there are, by our names."""
    if not isinstance(data, dict):
        return {"train": data}
    found = {name: data[other] for name, others in _SPLITS.items() for other in others if other in data}
    if "train" not in found:
        raise DataError(f'"{path}" has no split "train"', hint=f"it has: {', '.join(data)}")
    return found


def _check_tables(where: str, data: Any) -> None:
    """Arrow takes the offsets in a file for granted, and where they are wrong, reading ends the process."""
    try:
        data.data.validate(full=True)
    except Exception as error:
        raise DataError(f"{where} is broken: {files.reason(error)}", hint="fetch or save it again") from error


def _names(library: ModuleType, feature: Any) -> tuple[str, ...] | None:
    """The names of the classes by position; None where labels are names or numbers themselves."""
    inner = _inner(library, feature)
    return tuple(inner.names) if isinstance(inner, library.ClassLabel) else None


def _has_labels(library: ModuleType, feature: Any) -> bool:
    return isinstance(_inner(library, feature), library.ClassLabel | library.Value)


def _inner(library: ModuleType, feature: Any) -> Any:
    """What a column, or a list in it, holds."""
    return feature.feature if isinstance(feature, library.List) else feature


def _labels(value: Any, classes: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """The labels of a row; none for a missing value, and for the -1 that stands for one."""
    values = value if isinstance(value, list) else [value]
    if classes is not None:
        given = [index for index in values if index not in (None, -1)]
        for index in given:
            if not 0 <= index < len(classes):
                hint = f"classes are numbers from 0 to {len(classes) - 1}, and -1 stands for none"
                raise DataError(f"{where}: label {index} is no class", hint=hint)
        return tuple(dict.fromkeys(classes[index] for index in given))
    texts = [str(item) for item in values if item is not None]
    return tuple(dict.fromkeys(label for text in texts for label in labels_of(text, where, "")))
