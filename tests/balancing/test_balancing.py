"""Closed forms of every balancer, and what each must promise: a scalar with gradients, and exact resume."""

from __future__ import annotations

from math import exp

import pytest
import torch
from torch import Tensor, nn

from mtpeft.balancing import Balancer
from mtpeft.plugins import registry, resolve
from mtpeft_plugins.balancing.dwa import Dwa
from mtpeft_plugins.balancing.equal import Equal
from mtpeft_plugins.balancing.rlw import Rlw
from mtpeft_plugins.balancing.uw import Uw

WEIGHTS = {"cls": 1.0, "det.a": 0.5, "seg": 2.0}


def kind(name: str) -> type[Balancer]:
    return resolve("balancers", name)


def test_these_balancers_come_with_mtpeft() -> None:
    assert set(registry("balancers")) == {"equal", "uw", "dwa", "rlw"}


def started(balancer: Balancer, weights: dict[str, float] = WEIGHTS) -> Balancer:
    balancer.begin(weights, list(weights))
    return balancer


def leaves(*values: float) -> dict[str, Tensor]:
    return {task: torch.tensor(value, requires_grad=True) for task, value in zip(WEIGHTS, values, strict=False)}


@pytest.mark.parametrize("name", registry("balancers"))
def test_every_builtin_gives_each_task_a_gradient(name: str) -> None:
    balancer = started(kind(name)())
    losses = leaves(1.0, 2.0, 3.0)
    total = balancer.combine(losses)
    assert total.shape == ()
    total.backward()
    assert all(loss.grad > 0 for loss in losses.values())


@pytest.mark.parametrize("name", registry("balancers"))
def test_every_builtin_takes_a_batch_of_one_of_the_tasks(name: str) -> None:
    losses = leaves(1.0)
    started(kind(name)()).combine(losses).backward()
    assert losses["cls"].grad > 0


@pytest.mark.parametrize("name", registry("balancers"))
def test_every_builtin_resumes_exactly(name: str) -> None:
    settings = {"window": 2} if name == "dwa" else {}
    stream = [leaves(1.0 + i, 3.0 - i / 4, 2.0 + i % 3) for i in range(9)]
    whole = started(kind(name)(**settings))
    optimizer = torch.optim.SGD([*whole.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)
    expected, state = [], {}
    for i, losses in enumerate(stream):
        if i == 5:
            state = {key: value.clone() for key, value in whole.state().items()}
        total = whole.combine(losses)
        expected.append(total.item())
        if i < 5:
            total.backward()
            optimizer.step()
    resumed = started(kind(name)(**settings))
    resumed.restore(state)
    assert [resumed.combine(losses).item() for losses in stream[5:]] == expected[5:]


@pytest.mark.parametrize("name", registry("balancers"))
def test_gradients_of_tasks_add_up_where_no_aggregator_is_chosen(name: str) -> None:
    balancer = started(kind(name)())
    assert not balancer.needs_task_gradients
    jacobian, losses = torch.tensor([[1.0, 2], [3, 4]]), leaves(1.0, 2.0)
    torch.testing.assert_close(balancer.aggregate(jacobian, list(losses), losses), torch.tensor([4.0, 6.0]))


def test_equal_is_the_weighted_sum() -> None:
    losses = leaves(1.0, 4.0, 3.0)
    total = started(Equal()).combine(losses)
    assert total.item() == 1 + 0.5 * 4 + 2 * 3
    total.backward()
    assert [loss.grad.item() for loss in losses.values()] == [1, 0.5, 2]


def test_uncertainty_weighting_by_hand_and_at_its_optimum() -> None:
    balancer = started(Uw(initial=0.5))
    expected = exp(-0.5) * (1 + 0.5 * 4 + 2 * 3) + 3 * 0.25
    assert balancer.combine(leaves(1.0, 4.0, 3.0)).item() == pytest.approx(expected)
    with torch.no_grad():
        for s, weighted in zip(balancer.parameters(), (1.0, 2.0, 6.0), strict=True):
            s.fill_(2 * weighted).log_()  # d/ds (l e^-s + s/2) = 0 at s = log 2l
    balancer.combine(leaves(1.0, 4.0, 3.0)).backward()
    assert [s.grad.item() for s in balancer.parameters()] == pytest.approx([0, 0, 0], abs=1e-6)


def test_dynamic_weights_follow_the_ratio_of_two_windows() -> None:
    balancer = started(Dwa(temperature=2.0, window=2), {"cls": 1.0, "seg": 1.0})
    for cls, seg in [(3.0, 1.0), (5.0, 1.0), (2.0, 1.0), (2.0, 1.0)]:
        assert balancer.factors() == {"cls": 1.0, "seg": 1.0}
        balancer.combine({"cls": torch.tensor(cls), "seg": torch.tensor(seg)})
    a, b = exp(0.5 / 2), exp(1.0 / 2)  # mean loss 4 -> 2 and 1 -> 1
    assert balancer.factors() == pytest.approx({"cls": 2 * a / (a + b), "seg": 2 * b / (a + b)})
    total = balancer.combine({"cls": torch.tensor(2.0), "seg": torch.tensor(1.0)}).item()
    assert total == pytest.approx((2 * 2 * a + 2 * b) / (a + b))


def test_random_weights_sum_to_one_and_differ_by_draw_and_seed() -> None:
    balancer = started(Rlw(), dict.fromkeys(WEIGHTS, 1.0))
    assert balancer.combine(leaves(5.0, 5.0, 5.0)).item() == pytest.approx(5)
    draws = [balancer.combine(leaves(1.0, 2.0, 3.0)).item() for _ in range(5)]
    other = started(Rlw(seed=1), dict.fromkeys(WEIGHTS, 1.0))
    assert len(set(draws)) == 5
    assert other.combine(leaves(1.0, 2.0, 3.0)).item() not in draws


def test_random_weights_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    started(Rlw()).combine(leaves(1.0, 2.0, 3.0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", registry("balancers"))
def test_every_builtin_keeps_what_it_knows_of_a_task_through_stages_without_it(name: str) -> None:
    settings = {"window": 1} if name == "dwa" else {}
    balancer = started(kind(name)(**settings), {"cls": 1.0})
    optimizer = torch.optim.SGD([*balancer.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)
    for value in (3.0, 2.0):
        balancer.combine(leaves(value)).backward()
        optimizer.step()
    before = {key: value.clone() for key, value in balancer.state().items()}
    balancer.begin({"cls": 1.0, "seg": 2.0}, ["seg"])
    after = balancer.state()
    assert before.keys() <= after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = kind(name)(**settings)
    again.begin({"cls": 1.0, "seg": 2.0}, ["seg"])
    again.restore(after)
    assert again.combine(leaves(1.0)).item() == balancer.combine(leaves(1.0)).item()


def test_dynamic_weights_are_shared_among_the_tasks_of_the_stage() -> None:
    balancer = started(Dwa(window=1), {"cls": 1.0})
    for value in (3.0, 2.0):
        balancer.combine(leaves(value))
    balancer.begin({"cls": 1.0, "seg": 1.0}, ["seg"])
    assert balancer.factors() == {"seg": 1.0}
    assert set(balancer.factors(["cls"])) == {"seg", "cls"}  # one that came again


def test_random_weights_multiply_the_weighted_losses() -> None:
    balancer, losses = started(Rlw(seed=3)), leaves(1.0, 4.0, 3.0)
    factors = torch.randn(3, generator=torch.Generator().manual_seed(3)).softmax(0).tolist()
    weighted = [WEIGHTS[task] * loss.item() for task, loss in losses.items()]
    expected = sum(factor * loss for factor, loss in zip(factors, weighted, strict=True))
    assert balancer.combine(losses).item() == pytest.approx(expected)
