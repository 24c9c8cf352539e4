"""Checks of what must survive a restart: a method's state, and a training that goes on."""

from __future__ import annotations

import copy
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mtpeft.testing.case import Case, owned
from mtpeft.testing.training import Training, train

_BEFORE, _STEPS = 3, 5


def state_round_trip(case: Case) -> None:
    """What the method keeps beside its parts comes back from `state` through `restore`."""
    host = case.host(("a", "b"))
    train(case, host, ["a"], steps=1)
    routine, again = host.routines.get(case.name), case.copy().routine()
    if routine is not None and again is not None:
        again.give_back(routine.kept())
        case.same(again.kept(), routine.kept(), "state before and after restore")


def resumes_as_if_uninterrupted(case: Case) -> None:
    """A training saved between two updates and continued on a new host ends with the same bits."""
    whole = _begun(case)
    _go_on(whole, _STEPS - _BEFORE)
    resumed = _continued(case, _begun(case))
    _go_on(resumed, _STEPS - _BEFORE)
    for owner in whole.host.owners():
        case.same(
            owned(resumed.host, owner), owned(whole.host, owner), f"tensors of {owner}, resumed and uninterrupted,"
        )
    case.same(_kept(resumed), _kept(whole), "states, resumed and uninterrupted,")


def _kept(training: Training) -> dict[str, Tensor]:
    routine = training.host.routines.get(training.case.name)
    return {} if routine is None else routine.kept()


def _begun(case: Case) -> Training:
    training = Training(case, case.host(("a", "b")), ["a", "b"], _STEPS, rate=1e-2)
    training.begin()
    _go_on(training, _BEFORE)
    return training


def _go_on(training: Training, updates: int) -> None:
    """Dropout and the like draw the same in a resumed training, whose generator is restored with it."""
    for _ in range(updates):
        torch.manual_seed(training.context.step)
        training.update()


def _continued(case: Case, stopped: Training) -> Training:
    """The training on a new host, from what the old one leaves on disk and in its state."""
    host = case.host(("a", "b"), seed=1)
    with TemporaryDirectory() as folder:
        stopped.host.save(folder)
        host.load(folder)
    training = Training(case, host, ["a", "b"], _STEPS, rate=1e-2)
    training.context.step = stopped.context.step
    training.make_optimizer()
    if training.optimizer is not None and stopped.optimizer is not None:
        training.optimizer.load_state_dict(copy.deepcopy(stopped.optimizer.state_dict()))
    return training
