"""Checks of what a method says: its settings, its declarations, its names, and where it refuses."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from difflib import get_close_matches
from functools import partial
from typing import Any
from unittest.mock import PropertyMock, call, patch

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from mtpeft.errors import MtpeftError, NotApplicable, UsageError, did_you_mean
from mtpeft.names import SHARED
from mtpeft.peft import parts
from mtpeft.peft.declarations import CATEGORIES, Declarations
from mtpeft.peft.host import Host
from mtpeft.peft.method import Method
from mtpeft.peft.routine import Context, Routine
from mtpeft.plugins import registry
from mtpeft.settings import build
from mtpeft.testing.case import Case, said, tensors
from mtpeft.testing.merging_and_saving import expect_refusal, refusal
from mtpeft.testing.training import train
from mtpeft.testing.training_checks import anatomy
from mtpeft.testing.zoo import zoo

_CLOSE = 0.7
_CONTRACTS = (Method.__module__, Routine.__module__, parts.__name__)


def settings_round_trip(case: Case) -> None:
    """Its fields are its configuration: written as plain values and read again, they give the same method."""
    settings = {name: value for name, value in asdict(case.method).items() if value is not None}
    again = build(type(case.method), settings, "settings")
    case.expect(again == case.method, f"its settings give another method when read again: {again}")


def refuses_unknown_settings(case: Case) -> None:
    """A misspelt setting is an error that names it."""
    try:
        build(type(case.method), {"no_such_setting": 1}, "settings")
    except UsageError as error:
        case.expect("no_such_setting" in error.message, f'the error does not name the setting: "{error.message}"')
    else:
        case.expect(False, 'it takes a setting "no_such_setting"')


def refuses_settings_out_of_range(case: Case) -> None:
    """Of each number among the settings, minus one and zero are refused, or give finite features."""
    for field in fields(case.method):
        value = getattr(case.method, field.name)
        if field.init and isinstance(value, int | float) and not isinstance(value, bool):
            for odd in (-1, 0):
                _expect_refused_or_finite(case, field.name, type(value)(odd))


def _expect_refused_or_finite(case: Case, name: str, value: Any) -> None:
    try:
        method = build(type(case.method), {**_settings(case), name: value}, "settings")
        host = Host(case.backbone(), [(case.name, method)], ["a"]).eval()
        with torch.no_grad():
            found = host(case.images(host, 1), "a")
    except MtpeftError:
        return
    except Exception as error:
        raised = said(error, type(case.method))
        case.expect(False, f"it takes {name} = {value}, and then raises {raised}: give {name} a range, such as Count")
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors(found))
    case.expect(finite, f"with {name} = {value} features are not finite: give {name} a range, such as Count")


def _settings(case: Case) -> dict[str, Any]:
    return {name: value for name, value in asdict(case.method).items() if value is not None}


def declares_itself(case: Case) -> None:
    """Declarations are one value of the right types, and a sentence says what the method is."""
    method, cls = case.method, type(case.method)
    plain = "__dataclass_fields__" not in vars(cls) and list(inspect.get_annotations(cls))
    case.expect(not plain, f"{cls.__name__} annotates settings and is no dataclass: write @dataclass above it")
    setting = "declares" in {field.name for field in fields(method)}
    case.expect(not setting, "declares has an annotation, which makes a setting of it: drop the annotation")
    beside = [name for name in (field.name for field in fields(Declarations)) if hasattr(method, name)]
    case.expect(
        not beside, f"nothing reads {cls.__name__}.{', '.join(beside)}: write it in declares = Declarations(...)"
    )
    for fault in _faults(method.declares):
        case.expect(False, fault)
    doc = (cls.__doc__ or "").strip()
    case.expect(bool(doc) and not doc.startswith(f"{cls.__name__}("), "its class has no docstring")


def _faults(declares: Declarations) -> Iterator[str]:
    """What is wrong with declared values."""
    if not isinstance(declares, Declarations):
        yield f"declares is {declares!r}, and no Declarations(...)"
        return
    for name, value in vars(declares).items():
        kind = type(getattr(Declarations, name))
        if not isinstance(value, kind if kind is not float else (float, int)):
            yield f"{name} is declared as {value!r}: give it a {kind.__name__}"
    if declares.category not in CATEGORIES:
        yield f'its category is "{declares.category}": declare one of {", ".join(CATEGORIES)}'
    unknown = [kind for kind in declares.accepts if kind not in registry("tasks")]
    if unknown:
        yield f'it accepts "{unknown[0]}", which is no type of task; {did_you_mean(unknown[0], registry("tasks"))}'
    if not declares.learning_rate > 0:
        yield f"its learning rate is {declares.learning_rate}"
    if declares.inference_passes < 1:
        yield f"it declares {declares.inference_passes} passes at inference"


def spells_what_it_overrides(case: Case) -> None:
    """No public name of the method, its routine or its parts is unused and close to one of the contract.

    A hook so called never runs; nor does a routine's hook on the method.
    """
    host = case.host(("a",))
    built = [placed.part for placed in host.parts.active_parts("a", ["a"])]
    for cls in dict.fromkeys(map(type, [case.method, *host.routines.values(), *built])):
        for name, meant in _misspelt(cls):
            case.expect(
                False, f"nothing uses {cls.__name__}.{name}: did you mean {meant}? A name of your own may be _{name}"
            )


def _misspelt(cls: type) -> Iterator[tuple[str, str]]:
    contract = [base for base in cls.__mro__ if base.__module__ in _CONTRACTS]
    known = {name for base in contract for name in vars(base) if not name.startswith("_")} | {"forward"}
    own = [base for base in cls.__mro__ if base.__module__ == cls.__module__]
    source = _source(cls)
    for name in sorted({name for base in own for name in vars(base)} - known):
        used = name.startswith("_") or name in getattr(cls, "__dataclass_fields__", {}) or _uses(source, name)
        hook = [f"Routine.{name}"] if issubclass(cls, Method) and hasattr(Routine, name) else []
        close = [] if used else hook or get_close_matches(name, known, n=1, cutoff=_CLOSE)
        yield from ((name, meant) for meant in close)


def _uses(source: str, name: str) -> bool:
    return re.search(rf"\.{name}\b", source) is not None


def _source(cls: type) -> str:
    try:
        return inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):
        return ""


def builds_parts(case: Case) -> None:
    """It has parts; without a pattern, it wants none."""
    host = case.host(("a",))
    idle = not host.parts.active_parts("a", host.tasks) and case.copy().part(host.sites[0]) is not None
    case.expect(not idle, "its pattern `at` is empty, so that no site gets its part")


def asks_for_what_it_needs(case: Case) -> None:
    """Declared to need the task, it refuses a sample without one; to need the number of stages, it asks for that."""
    if case.method.declares.needs_task_id and case.method.scope == SHARED:
        host = case.host()
        error = refusal(partial(host, case.images(host, 1)), MtpeftError)
        case.expect(error is not None, "it declares that it needs the task, and runs without")
    if case.method.declares.needs_task_count:
        with patch.object(Context, "stages", new_callable=PropertyMock, return_value=1) as stages:
            train(case, case.host(("a",)), ["a"])
        case.expect(call() in stages.mock_calls, "it declares needs_task_count, and never asks for Context.stages")


def keeps_shapes(case: Case) -> None:
    """A part's weight, input or output has the shape of the one it is given."""
    handle = register_module_forward_hook(partial(_expect_shape, case))
    try:
        case.host(("a",))
    finally:
        handle.remove()


def _expect_shape(case: Case, module: nn.Module, args: Any, output: Any) -> None:
    if isinstance(module, parts.WeightPart | parts.InputPart | parts.OutputPart):
        given, gives = tuple(args[-1].shape), tuple(getattr(output, "shape", ()))
        case.expect(gives == given, f"{type(module).__name__}.forward gives the shape {gives}, of one that is {given}")


def attaches(case: Case) -> None:
    """It attaches, or is refused in one sentence: no other error ends it."""
    try:
        keeps_shapes(case)
    except MtpeftError as error:
        case.expect(False, error.message)


def refuses_in_one_sentence(case: Case) -> None:
    """Where a method makes no sense, attaching it is refused in one sentence and leaves the backbone as it was.

    There is a family on which it makes sense.
    """
    backbone = case.backbone()
    before = anatomy(backbone)
    error = refusal(lambda: case.host(backbone=backbone), NotApplicable, UsageError)
    expect_refusal(case, error, "it was refused, and now it is not")
    case.expect(anatomy(backbone) == before, "a refusal leaves the backbone changed")
    works = any(refused(Case(case.name, case.method, family)) is None for family in zoo())
    case.expect(works, f"every family refuses it, this one so: {error and error.message}")


def refused(case: Case) -> MtpeftError | None:
    """Why a method cannot be attached to a family, or None."""
    attach = partial(Host, case.backbone(), [(case.name, case.copy())], ["a"])
    return refusal(attach, NotApplicable, UsageError)
