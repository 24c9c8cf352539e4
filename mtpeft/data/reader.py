"""The contract of data readers, and the one door to them: ``READER:PATH?option=value``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from mtpeft.addresses import DataAddress
from mtpeft.errors import DataError, UsageError
from mtpeft.plugins import create, resolve
from mtpeft.settings import from_toml
from mtpeft.task import Dataset, Split

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass
class Reader(ABC):
    """Reads one layout of data. Subclass as a dataclass; fields are the options of ``READER:PATH?option=value``.

    Attributes:
        gives: the targets that its samples may have (``label``, ``boxes``, ``mask``, ...).
        classes: keep only these; empty for all.
        found: what `report` collected; None while it raises.
        noticed: what `notice` collected.
    """

    gives: ClassVar[tuple[str, ...]]

    classes: tuple[str, ...] = ()
    found: list[DataError] | None = field(default=None, init=False, repr=False, compare=False)
    noticed: list[DataError] = field(default_factory=list, init=False, repr=False, compare=False)

    @abstractmethod
    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """The samples of one split.

        Args:
            path: what stands behind the colon: a file or folder, or what else the reader takes.
            gives: the target that is asked for, one of the reader's; others may be left out.
            seed: of splits that are held out of the training data.

        Raises:
            DataError: naming file and field, for data that cannot be used.
        """

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder looks like this layout, by names and a glance; cheap, and never an error."""
        return False

    def report(self, error: DataError) -> None:
        """Something wrong in the data that can be left out: raise it, or where all are wanted, keep it and go on."""
        if self.found is None:
            raise error
        self.found.append(error)

    def notice(self, error: DataError) -> None:
        """Something that may well be meant, such as an image that no list names: kept for who looks at the data."""
        self.noticed.append(error)

    def attempt(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """What the function gives; None after its `DataError` was reported."""
        try:
            return function(*arguments)
        except DataError as error:
            self.report(error)
            return None

    def attempt_all(self, function: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T | None]:
        """`attempt` for each item, in their order; several at a time, for reading and decoding let others run."""

        def tried(item: Item) -> T | DataError:
            try:
                return function(item)
            except DataError as error:
                return error

        pool = ThreadPoolExecutor()
        try:
            for result in pool.map(tried, items):
                if isinstance(result, DataError):
                    self.report(result)
                    yield None
                else:
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)


def open_data(data: str, split: Split, *, gives: str, seed: int = 0, classes: Sequence[str] = ()) -> Dataset:
    """The samples of a split of ``READER:PATH?option=value&...``.

    Args:
        gives: the target that the task type needs, e.g. ``label``, ``boxes`` or ``mask``.
        seed: of splits that are held out of the training data.
        classes: the reader's option of that name; empty for all.

    Raises:
        UsageError: for an unknown reader or option, or a reader that does not give the target.
        DataError: naming file and field, for data that cannot be used.
    """
    reader, path = open_reader(data, classes)
    if gives not in reader.gives:
        name = DataAddress.parse(data).reader
        raise UsageError(f'reader "{name}" gives no {gives}', hint=f"its samples have: {', '.join(reader.gives)}.")
    dataset = reader.read(path, split, gives=gives, seed=seed)
    dataset.left_out = tuple(reader.noticed)
    if len(dataset) == 0:
        raise DataError(f'"{data}" has no samples for the split "{split}"', hint="check the path and its split files")
    return dataset


def open_reader(data: str, classes: Sequence[str] = ()) -> tuple[Reader, str]:
    """The configured reader of ``READER:PATH?option=value&...``, and the path.

    Raises:
        UsageError: for an unknown reader or option, or a value that the option does not take.
    """
    address = DataAddress.parse(data)
    hints = get_type_hints(resolve("readers", address.reader))
    options = {name: _typed(hints.get(name, str), text) for name, text in address.options}
    if classes:
        options["classes"] = list(classes)
    return create("readers", address.reader, options, where=address.reader), address.path


def _typed(annotation: Any, text: str) -> Any:
    """An option's text as the plain value that its field takes; a comma separates the items of a list."""
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        return [_typed(item, part.strip()) for part in text.split(",") if part.strip()]
    return text if annotation is str or text in get_args(annotation) else from_toml(text)
