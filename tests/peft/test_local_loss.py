"""Local cross-entropy: the classes of earlier stages take no part in training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mtpeft.api import Context, Host, local_logits
from mtpeft.testing.zoo import zoo

NAMES = tuple("abcdef")
HOST = Host(zoo()["vit"](), [], ["first", "second", "third"])


class Classes(nn.Module):
    classes = NAMES


HOST.add_head("group", Classes(), group=True)
for member in HOST.tasks:
    HOST.bind_head(member, "group")
OWN = {"first": ("c", "a"), "second": ("b", "f"), "third": ("d", "e")}


def local(outputs, tasks=("second",), known=tuple(OWN), task="second"):
    context = Context(HOST, tasks, tuple(OWN), classes={name: OWN[name] for name in tasks if name in known})
    return local_logits(context, task, outputs)


@given(st.integers(0, 2**16), st.sampled_from([0.1, 1.0, 80.0]), st.sampled_from([torch.float32, torch.float64]))
def test_it_is_cross_entropy_over_the_current_classes_alone(seed, size, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = (size * torch.randn(5, 6, generator=generator, dtype=dtype)).requires_grad_()
    labels = torch.tensor([1, 5, 5, 1, 1])
    loss = F.cross_entropy(local(logits), labels)
    expected = F.cross_entropy(logits[:, [1, 5]], (labels == 5).long())
    torch.testing.assert_close(loss, expected)
    (mine,), (theirs,) = (torch.autograd.grad(value, logits) for value in (loss, expected))
    torch.testing.assert_close(mine, theirs)
    assert not mine[:, [0, 2, 3, 4]].abs().max() > 1e-40


def test_classes_of_all_tasks_of_the_stage_compete():
    logits = torch.randn(3, 6)
    probabilities = local(logits, ("first", "second")).softmax(-1)
    assert not probabilities[:, [3, 4]].abs().max() > 1e-40
    torch.testing.assert_close(probabilities[:, [0, 1, 2, 5]], logits[:, [0, 1, 2, 5]].softmax(-1))


@pytest.mark.parametrize("loss", ["smoothed", "binary"])
def test_losses_over_all_classes_stay_finite(loss):
    logits, wanted = torch.randn(4, 6).requires_grad_(), torch.tensor([1, 5, 1, 1])
    if loss == "smoothed":
        F.cross_entropy(local(logits), wanted, label_smoothing=0.1).backward()
    else:
        weight = torch.zeros(4, 6).index_fill(1, torch.tensor([1, 5]), 1.0)
        F.binary_cross_entropy_with_logits(local(logits), F.one_hot(wanted, 6).float(), weight).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, [0, 2, 3, 4]].any()
    assert logits.grad[:, [1, 5]].any()


@pytest.mark.parametrize("outputs", [torch.zeros(2, 6, 4, 4), (torch.zeros(2, 6),), torch.zeros(2, 5)])
def test_what_is_no_row_of_logits_stays(outputs):
    assert local(outputs) is outputs


def test_nothing_is_masked_where_all_classes_are_current_or_none_are_known():
    logits = torch.randn(2, 6)
    assert local(logits, tuple(OWN)) is logits
    assert local(logits, known=()) is logits
