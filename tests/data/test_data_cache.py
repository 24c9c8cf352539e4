"""Decoded samples on the disk are the samples, and whose they are is never mistaken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.letters import Letters

from mtpeft.config import Overrides, load
from mtpeft.data.decoded_cache import Decoded, place
from mtpeft.errors import MtpeftError, UsageError
from mtpeft.task import Dataset, Sample
from mtpeft.training.session import Session


class Given(Dataset):
    """One sample with a given target; counts how often it is read."""

    classes = ("a", "b")

    def __init__(self, target: dict, size: tuple[int, int] = (5, 3)) -> None:
        self.target, self.size, self.reads = target, size, 0

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        pixels = np.random.default_rng(0).integers(0, 256, (*self.size, 3), dtype=np.uint8)
        return Sample(Image.fromarray(pixels), self.target, "ordner/ä b.png")


TARGETS = [
    {},
    {"label": 3, "classes": ("a", "b")},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "difficult": torch.zeros(0) > 0},
    {"boxes": torch.arange(24.0).reshape(4, 6)[:, 1:5], "classes": ("ä",), "labels": torch.tensor([1, 2, 3, 4])},
    {"depth": torch.full((5, 3), torch.inf), "kind": None, "note": ["x", 1.5, True]},
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: "+".join(target) or "nothing")
def test_a_sample_is_read_once_and_the_same_afterwards(target: dict, tmp_path: Path) -> None:
    whole = Given(target)
    kept, plain = Decoded(whole, tmp_path / "new" / "folder"), whole[0]
    for sample in (kept[0], kept[0], Decoded(whole, tmp_path / "new" / "folder")[0]):
        assert sample.name == plain.name and sample.image.mode == "RGB" and list(sample.target) == list(target)
        assert np.array_equal(np.array(sample.image), np.array(plain.image))
        for key, value in target.items():
            assert type(sample.target[key]) is type(value)
            if isinstance(value, torch.Tensor):
                assert torch.equal(sample.target[key], value) and sample.target[key].dtype == value.dtype
            else:
                assert sample.target[key] == value
    assert whole.reads == 2 and len(list((tmp_path / "new" / "folder").iterdir())) == 1


def test_two_targets_may_share_memory(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    kept = Decoded(Given({"one": values[:3], "other": values[3:]}), tmp_path)
    assert kept[0] and torch.equal(kept[0].target["other"], values[3:])


@pytest.mark.parametrize("target", [{"when": object()}, {"pairs": [(1, 2)]}, {"table": {1: "a"}}])
def test_what_would_come_back_as_another_is_refused(target: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ä b\.png"):
        Decoded(Given(target), tmp_path)[0]
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    kept = Decoded(Given({"label": 1}), tmp_path)
    first = kept[0]
    file = next(tmp_path.iterdir())
    whole = file.read_bytes()
    for damaged in (b"", whole[:40], whole[:-1], bytes(len(whole))):
        file.write_bytes(damaged)
        assert np.array_equal(np.array(kept[0].image), np.array(first.image)) and file.read_bytes() == whole


SOUND = {"name": "x", "order": ["label"], "plain": {"label": 3}, "tuples": []}
PIXELS = torch.zeros(5, 3, 3, dtype=torch.uint8)
FOREIGN = [
    ({"image": PIXELS}, None),
    ({"image": PIXELS}, "["),
    ({"image": PIXELS}, "null"),
    *(({"image": PIXELS}, json.dumps({**SOUND, **other})) for other in ({"order": ["x"]}, {"plain": 3}, {"more": 1})),
    ({}, json.dumps(SOUND)),
    ({"image": PIXELS.float()}, json.dumps(SOUND)),
    ({"image": PIXELS[..., :2].contiguous()}, json.dumps(SOUND)),
    ({"image": PIXELS[0]}, json.dumps(SOUND)),
    ({"image": PIXELS, "target.more": PIXELS.clone()}, json.dumps(SOUND)),
]


@pytest.mark.parametrize(("tensors", "about"), FOREIGN)
def test_a_file_with_another_header_is_made_anew(tensors: dict, about: str | None, tmp_path: Path) -> None:
    whole = Given({"label": 3})
    kept, file = Decoded(whole, tmp_path), tmp_path / "0.safetensors"
    save_file(tensors, file, None if about is None else {"about": about})
    assert kept[0].target == {"label": 3} and kept[0].name == whole[0].name and whole.reads == 2


def test_what_is_no_file_is_made_anew(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.safetensors")
    whole = Given({"label": 3})
    assert Decoded(whole, tmp_path)[0].target == {"label": 3} and (tmp_path / "0.safetensors").is_file()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MtpeftError, match="cannot write"):
        Decoded(Given({"label": 1}), tmp_path / "file")[0]


def test_data_that_nobody_would_know_again_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be cached"):
        place(tmp_path, {}, Letters("abc"))


def photographs(root: Path, size: int = 40) -> Path:
    generator = np.random.default_rng(size)
    for index in range(12):
        for label in ("cat", "dog"):
            path = root / "pets" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return root / "pets"


def trained(root: Path, data: Path, *settings: str, out: str = "run") -> dict[str, torch.Tensor]:
    flags = {"--tasks": f"pets=cls@folder:{data}", "--method": "toy", "--backbone": "tiny", "--steps": 2}
    session = Session.start(load(None, Overrides(flags | {"--out": root / out}, settings)))
    session.train()
    return {name: value.detach().clone() for name, value in session.run.host.trainable(["pets"]).items()}


def test_training_is_the_same_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = photographs(tmp_path), f"cache={tmp_path / 'cache'}"
    plain = trained(tmp_path, data, out="plain")
    first = trained(tmp_path, data, cache, out="first")
    apart = trained(tmp_path, data, cache, "workers=2", out="apart")
    monkeypatch.setattr("mtpeft_tasks.readers.files.decode", lambda path: pytest.fail(f"{path} is decoded again"))
    again = trained(tmp_path, data, cache, out="again")
    assert first.keys() == plain.keys() == again.keys() == apart.keys()
    assert all(torch.equal(found[key], plain[key]) for key in plain for found in (first, again, apart))


def test_changed_pixels_have_another_cache(tmp_path: Path) -> None:
    data, cache = photographs(tmp_path), f"cache={tmp_path / 'cache'}"
    trained(tmp_path, data, cache, out="first")
    before = set((tmp_path / "cache").rglob("*"))
    image = next(data.rglob("*.png"))
    with Image.open(image) as picture:
        size = picture.size
    Image.new("RGB", size, (9, 9, 9)).save(image)
    trained(tmp_path, data, cache, out="again")
    assert set((tmp_path / "cache").rglob("*")) > before


def test_other_data_or_another_reading_has_another_folder(tmp_path: Path) -> None:
    class Hashed(Given):
        def manifest(self) -> dict:
            return {"sha256": str(self.size)}

    about = {"data": "folder:pets", "split": "train", "classes": ("a",)}
    places = [place(tmp_path, about, Hashed({})), place(tmp_path, about, Hashed({}, (6, 6)))]
    places += [place(tmp_path, about | other, Hashed({})) for other in ({"split": "val"}, {"classes": ("b",)})]
    assert len(set(places)) == 4 and place(tmp_path, about, Hashed({"label": 1})) == places[0]
