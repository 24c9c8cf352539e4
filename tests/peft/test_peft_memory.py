"""Samples kept by key: the budget, the order, and what comes back after a restart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.errors import MtpeftError
from mtpeft.peft.memory import Memory
from mtpeft.settings import byte_count

KEYS = st.lists(st.tuples(st.sampled_from(["b", "a", "c-2"]), st.integers(0, 30)), max_size=20)


def filled(keys: list[tuple[str, int]]) -> Memory:
    memory = Memory()
    for task, index in keys:
        memory.add((task, index), logits=torch.full((3,), float(index)))
    return memory


@given(KEYS)
def test_what_is_kept_comes_back_in_its_order(keys):
    memory, again = filled(keys), Memory()
    again.restore(memory.state())
    assert list(again) == list(memory) and len(memory) == len(set(keys))
    assert all(torch.equal(again.extra(key)["logits"], memory.extra(key)["logits"]) for key in memory)


@given(KEYS, st.integers(0, 500), st.integers(0, 50))
def test_a_budget_is_never_exceeded(keys, budget, sample):
    memory = Memory()
    memory.budget, memory.sample_bytes, memory.owner = budget, sample, "replay"
    for key in keys:
        room = memory.room(logits=torch.zeros(3))
        try:
            memory.add(key, logits=torch.zeros(3))
        except MtpeftError as error:
            assert room == 0 and error.message.startswith("replay would keep")
        assert memory.bytes <= budget and memory.bytes == len(memory) * (sample + 12)


def test_methods_share_one_budget():
    one, other = Memory(), Memory()
    for memory, beside in ((one, other), (other, one)):
        memory.budget, memory.sample_bytes, memory.beside = 100, 30, (beside,)
    one.add(("a", 0))
    other.add(("a", 0))
    other.add(("a", 1))
    assert one.room() == 0
    with pytest.raises(MtpeftError, match="would keep 60 bytes of samples, and 40 are left"):
        one.add(("a", 1))
    other.remove(("a", 1))
    one.add(("a", 1))


def test_tensors_of_one_task_have_one_shape():
    memory = filled([("a", 0)])
    with pytest.raises(MtpeftError, match="beside a sample of a"):
        memory.add(("a", 1), logits=torch.zeros(4))
    memory.add(("b", 1), logits=torch.zeros(4))
    assert ("a", 1) not in memory and ("b", 1) in memory


@pytest.mark.parametrize(
    ("text", "count"), [("5MB", 5_000_000), ("200kB", 200_000), ("1.5 KiB", 1536), ("0B", 0), ("2GB", 2 * 10**9)]
)
def test_sizes_in_words(text, count):
    assert byte_count(text) == count
