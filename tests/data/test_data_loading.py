from __future__ import annotations

import pytest
import torch
from support.training_toy import Colours

from mtpeft.backbone.features import ImageConfig
from mtpeft.data.loading import Samples, Source, batches, draw
from mtpeft.errors import DataError
from mtpeft.schedule import Cursor

IMAGE = ImageConfig((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
QUOTAS = [{"a": 3, "b": 2}, {"b": 4}, {"a": 5, "b": 1}]


def sources(**settings):
    tasks = {name: Colours(**settings) for name in ("a", "b")}
    return {name: Source(task, task.dataset("train", seed=i)) for i, (name, task) in enumerate(tasks.items())}


def load(workers: int, seed: int = 7) -> list:
    found = sources()
    cursors = {name: Cursor(seed, name, len(source.dataset)) for name, source in found.items()}
    return list(batches(Samples(found, IMAGE, seed, train=True), draw(QUOTAS, cursors), workers=workers))


def same(first, second) -> bool:
    return all(
        list(a) == list(b) and all(torch.equal(a[n][0], b[n][0]) and str(a[n][1]) == str(b[n][1]) for n in a)
        for a, b in zip(first, second, strict=True)
    )


def test_batches_hold_their_quotas():
    assert [{name: len(images) for name, (images, _) in batch.items()} for batch in load(0)] == QUOTAS


def test_workers_change_nothing():
    assert same(load(0), load(2))


def test_the_seed_changes_everything():
    assert not same(load(0), load(0, seed=8))


def test_a_sample_depends_on_its_key_alone_and_leaves_the_global_generator():
    samples = Samples(sources(), IMAGE, 7, train=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = samples.one("a", 3, 0)[0]
    assert torch.equal(torch.get_rng_state(), before)
    samples.one("a", 4, 0)
    assert torch.equal(samples.one("a", 3, 0)[0], first)
    assert not torch.equal(samples.one("a", 3, 1)[0], first)


def test_loading_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    load(0)
    assert torch.equal(torch.get_rng_state(), before)


class Broken(Colours):
    def dataset(self, split, *, seed=0):
        raise NotImplementedError

    def transform(self, image, *, train):
        def refuse(sample):
            raise DataError(f"{sample.name} is corrupt", hint="remove it")

        return refuse


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_sample_arrives_whole(workers):
    source = Source(Broken(), Colours().dataset("train"))
    with pytest.raises(DataError) as caught:
        list(batches(Samples({"a": source}, IMAGE, 0, train=True), [[("a", 2, 0)]], workers=workers))
    assert (caught.value.message, caught.value.hint) == ("train 2 is corrupt", "remove it")
