"""``hf:NAME``: classification and detection from Hugging Face ``datasets`` (the extra ``hf``).

NAME is a folder that ``save_to_disk`` wrote, a folder that ``load_dataset`` reads, or ``hf://NAME`` for a name on the
hub, which is fetched once. The column ``image`` holds images and ``label`` a class, or a list of classes. Boxes are in
the column ``objects``: for each image a list of objects with ``bbox`` (x, y, width, height in pixels, as in COCO;
``?boxes=xyxy`` for corners) and ``category``. Missing splits are held out of the training images: 20 % for test, 10 %
for validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from PIL import Image

from mtpeft.api import DataError, Dataset, Split, did_you_mean
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.boxes import Annotated, BoxOptions, Object, require_objects
from mtpeft_tasks.readers.hf_objects import BoxedRows, BoxForm, Layout
from mtpeft_tasks.readers.labels import Entry, Found, LabelReader, Source, in_order, labels_of
from mtpeft_tasks.readers.splits import FOLDERS

_HUB = "hf://"


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
class HuggingFace(BoxOptions, LabelReader):
    """Classification and detection from Hugging Face datasets: a folder or a name on the hub.

    Attributes:
        image: the column of images.
        label: the column of labels.
        objects: the column of objects.
        boxes: ``xywh`` or ``xyxy``, in pixels.
        config: the configuration of a data set that has several.
    """

    gives: ClassVar[tuple[str, ...]] = ("label", "labels", "boxes")

    image: str = "image"
    label: str = "label"
    objects: str = "objects"
    boxes: BoxForm = "xywh"
    config: str = ""

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every row of labels or objects is checked, and the headers of images with boxes.

        Raises:
            DataError: naming split and row, for what cannot be used.
            UsageError: for a class that the data does not have.
        """
        if gives == "boxes":
            return self._boxed(path, split, seed)
        return super().read(path, split, gives=gives, seed=seed)

    def find(self, path: str) -> Found:
        library = _library()
        splits = self._splits(library, path)
        for name, data in splits.items():
            where = f'"{path}", split {name}'
            labels = [column for column, feature in data.features.items() if _has_labels(library, feature)]
            _check_column(where, "label", self.label, labels, data.features)
        classes = _names(library, splits["train"].features[self.label])
        entries = {name: self._entries(path, name, data, classes) for name, data in splits.items()}
        return Found(self._rows(splits), entries, classes, path)

    def place(self, file: Path, number: int) -> str:
        return f'"{file}", object {number}'

    def _boxed(self, path: str, split: Split, seed: int) -> Dataset:
        library = _library()
        splits = self._splits(library, path)
        layouts = {name: self._layout(library, path, name, data) for name, data in splits.items()}
        tried = {name: self._objects(path, name, data, layouts[name]) for name, data in splits.items()}
        rows = {row: objects for found in tried.values() for row, objects in found.items()}
        named = layouts["train"].classes or in_order(found.label for objects in rows.values() for found in objects)
        kept = files.asked_classes(named, self.classes)
        names = {name: list(found) for name, found in tried.items()}
        chosen = files.fill_splits(names, dict.fromkeys(names["train"], ""), seed).get(split, [])
        raw = {
            n: data.select_columns(self.image).cast_column(self.image, library.Image(decode=False))
            for n, data in splits.items()
        }
        items = [self.attempt(self._item, path, raw, row, rows[row], kept) for row in chosen]
        found = [item for item in items if item is not None]
        require_objects(found, kept, path, split)
        return BoxedRows(found, kept, self._rows(splits))

    def _layout(self, library: ModuleType, path: str, split: str, data: Any) -> Layout:
        where = f'"{path}", split {split}'
        _check_column(where, "objects", self.objects, list(data.features), data.features)
        return Layout.of(library, where, self.objects, data.features[self.objects])

    def _objects(self, path: str, split: str, data: Any, layout: Layout) -> dict[str, tuple[Object, ...]]:
        """The objects of each row of a split, by the row's name."""
        values = data.select_columns(self.objects)[:][self.objects]
        rows = {f"{split}/{index}": value for index, value in enumerate(values)}
        tried = {
            row: self.attempt(layout.objects, value, self.boxes, f'"{path}", {row}') for row, value in rows.items()
        }
        return {row: objects for row, objects in tried.items() if objects is not None}

    def _item(
        self, path: str, raw: Mapping[str, Any], row: str, objects: tuple[Object, ...], kept: tuple[str, ...]
    ) -> Annotated:
        split, _, index = row.partition("/")
        stored = raw[split][int(index)][self.image] or {}
        content, where = stored.get("bytes"), stored.get("path") or ""
        if content is None and not where:
            raise DataError(f'"{path}", {row} has no image', hint="leave the row out")
        size = files.image_size(where if content is None else row, content)
        item = Annotated(Path(row), row, size, Path(path, row))
        asked = frozenset(kept)
        whole = [self.attempt(self.checked, item, found) for found in objects if found.label in asked]
        state = f"{size} {'' if content is None else len(content)}"
        return replace(item, objects=tuple(found for found in whole if found is not None), state=state)

    def _rows(self, splits: Mapping[str, Any]) -> Rows:
        return Rows({name: data.select_columns(self.image) for name, data in splits.items()}, self.image)

    def recognises(self, path: Path) -> bool:
        """A folder that ``save_to_disk`` wrote."""
        return _is_saved(path)

    def _opened(self, library: ModuleType, path: str) -> Any:
        place = Path(path).expanduser()
        walk.only_regular(place)
        try:
            if _is_saved(place):
                return library.load_from_disk(str(place))
            return library.load_dataset(
                path.removeprefix(_HUB) if path.startswith(_HUB) else str(place), self.config or None
            )
        except Exception as error:  # a builder may raise anything
            message = f'"{path}" cannot be loaded by datasets: {files.reason(error)}'
            raise DataError(message, hint="check the name, ?config=NAME, and that the hub can be reached") from error

    def _splits(self, library: ModuleType, path: str) -> dict[str, Any]:
        """The data of the splits that there are, by our names, each with a column of images."""
        data = self._opened(library, path)
        found = _splits(path, data)
        for name in data if isinstance(data, dict) else ():
            if not any(data[name] is used for used in found.values()):
                message = f'"{path}": the split "{name}" is none of train, val and test, and left out'
                self.notice(DataError(message, hint="rename it, or load it by itself"))
        for name, data in found.items():
            where = f'"{path}", split {name}'
            _check_tables(where, data)
            images = [column for column, feature in data.features.items() if isinstance(feature, library.Image)]
            _check_column(where, "image", self.image, images, data.features)
        return found

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
    named = {split: next((name for name in names if name in data), "") for split, names in FOLDERS.items()}
    found = {split: data[name] for split, name in named.items() if name}
    if "train" not in found:
        raise DataError(f'"{path}" has no split "train"', hint=f"it has: {', '.join(data)}")
    return found


def _check_column(where: str, option: str, column: str, fitting: Sequence[str], features: Mapping[str, Any]) -> None:
    if column not in fitting:
        what = f"holds no {option}s" if column in features else "does not exist"
        hint = f"{did_you_mean(column, fitting)} Another is named with ?{option}=COLUMN."
        raise DataError(f'{where}: the column "{column}" {what}', hint=hint)


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
