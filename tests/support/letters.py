"""A data set whose samples are letters: no file, no image."""

from __future__ import annotations

from mtpeft.task import Dataset, Sample


class Letters(Dataset):
    def __init__(self, text: str, classes: tuple[str, ...] = ("a",)) -> None:
        self.text, self.classes = text, classes

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> Sample:
        return Sample(None, {}, self.text[index])
