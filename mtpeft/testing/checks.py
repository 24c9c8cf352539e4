"""The conformance kit for methods: small named checks, chosen by what a method declares.

Example, in a plugin's tests::

    from mtpeft.testing import parametrize_with_checks

    @parametrize_with_checks(["my-method"], families=["vit", "swin"])
    def test_conformance(check):
        check()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from mtpeft.errors import UsageError, did_you_mean
from mtpeft.peft.declarations import Declarations
from mtpeft.peft.method import Method
from mtpeft.testing import continual_checks, declarations, merging_and_saving, resuming, routing, training_checks
from mtpeft.testing.case import Case, CheckFailed, make_method, said
from mtpeft.testing.declarations import attaches, refused, refuses_in_one_sentence
from mtpeft.testing.zoo import zoo

FAMILIES = ("vit", "vit-reg4", "vit-gap", "beit", "eva02", "dinov3", "swin", "swinv2", "convnext", "resnet")
"""The families a method is tried on unless others are named."""
SCOPES = ("shared", "task")
SLOW = (routing.compiles,)

_OF_THE_CLASS = (
    declarations.settings_round_trip,
    declarations.refuses_unknown_settings,
    declarations.refuses_settings_out_of_range,
    declarations.declares_itself,
    declarations.spells_what_it_overrides,
)
_ALWAYS = (
    declarations.builds_parts,
    declarations.keeps_shapes,
    declarations.asks_for_what_it_needs,
    continual_checks.passes_as_often_as_it_says,
    training_checks.registers_its_tensors,
    training_checks.is_alive,
    training_checks.trains_its_own_only,
    training_checks.leaves_the_backbone_alone,
    training_checks.isolates_tasks,
    training_checks.copies_are_independent,
    training_checks.repeats_from_its_seed,
    training_checks.evaluates_samples_alone,
    training_checks.learns_a_batch,
    training_checks.is_finite_in_bfloat16,
    resuming.state_round_trip,
    resuming.resumes_as_if_uninterrupted,
    continual_checks.resumes_in_a_later_stage,
    merging_and_saving.saves_what_it_trains,
    routing.mixed_equals_separate,
    routing.composes_with_itself,
    routing.several_tasks_take_one_pass,
    routing.keeps_task_gradients_apart,
    routing.checkpoints,
    routing.compiles,
)

_DOORS = ("owners", "encode", "answer", "features_info", "classifier", "routine")


def _does_more(method: Method) -> bool:
    """It says more than which site gets which part."""
    return any(getattr(type(method), door) is not getattr(Method, door) for door in _DOORS)


_IF: dict[Callable[[Case], None], Callable[[Method], bool]] = {
    training_checks.starts_as_the_backbone: lambda method: method.declares.identity_at_init,
    training_checks.does_not_start_as_the_backbone: lambda method: not method.declares.identity_at_init,
    merging_and_saving.merges_into_plain_timm: lambda method: method.declares.mergeable,
    merging_and_saving.merging_nothing_changes_nothing: lambda method: (
        method.declares.mergeable and method.declares.identity_at_init
    ),
    merging_and_saving.refuses_to_merge: lambda method: not method.declares.mergeable,
    continual_checks.calls_hooks_in_order: lambda method: method.routine() is not None,
    continual_checks.counts_what_it_keeps: _does_more,
    continual_checks.steps_what_gets_gradients: _does_more,
    continual_checks.keeps_what_is_frozen: _does_more,
    continual_checks.keeps_isolated_answers: _does_more,
}


@dataclass(frozen=True)
class Check:
    """One check of one method on one family; call it to run it.

    Attributes:
        function: takes a `Case`; raises CheckFailed.
        case: the method, the family and the scope.
        reason: why it is expected to fail, or empty.
    """

    function: Callable[[Case], None]
    case: Case
    reason: str = ""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def slow(self) -> bool:
        return self.function in SLOW

    def __str__(self) -> str:
        return f"{self.case.name}-{self.case.family}-{self.case.method.scope}-{self.name}"

    def __call__(self) -> None:
        """Run.

        Raises:
            CheckFailed: if the check fails; or if it was expected to fail, and passes.
        """
        try:
            self.function(replace(self.case, check=self.name))
        except Exception:
            if not self.reason:
                raise
        else:
            if self.reason:
                raise CheckFailed(f"{self}: it is expected to fail ({self.reason}), and passes")

    def failure(self) -> str:
        """Run; why it fails in one line, or nothing."""
        try:
            self()
        except CheckFailed as error:
            return str(error)
        except Exception as error:
            return f"{self.case.where}: {self.name}: it raises {said(error, type(self.case.method))}"
        return ""


def method_checks(
    method: str | type[Method] | Method,
    families: Sequence[str] | None = None,
    scopes: Sequence[str] | None = None,
    *,
    slow: bool = True,
    settings: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Iterator[Check]:
    """Every check that a method's declarations ask for.

    Args:
        method: a registered id, a class, or a configured method.
        families: keys of `mtpeft.testing.zoo`; default `FAMILIES`.
        scopes: of ``shared`` and ``task``; default both, or the method's own where scope changes nothing.
        slow: include the checks in `SLOW`.
        settings: of the method, for an id or a class.
        expected_failures: name of a check -> why it fails.

    Raises:
        UsageError: for a family or a check that there is not, or an expected failure without a reason.
        CheckFailed: if the method cannot be built.
    """
    expected = dict(expected_failures or {})
    for check, reason in expected.items():
        if not reason:
            raise UsageError(f'the expected failure of "{check}" needs a reason', hint="say why in one sentence")
    _known(families or (), zoo(), "family")
    _known(expected, [f.__name__ for f in _functions(None)], "check")
    for scope in scopes or _scopes(make_method(method, dict(settings or {}))[1]):
        name, made = make_method(method, {**(settings or {}), "scope": scope})
        for family in families or FAMILIES:
            case = Case(name, made, family)
            for function in _chosen(case):
                if slow or function not in SLOW:
                    yield Check(function, case, expected.get(function.__name__, ""))


def check_method(method: str | type[Method] | Method, families: Sequence[str] | None = None, **options: Any) -> None:
    """Run every check of `method_checks` (whose arguments it takes) and report all that fail.

    Raises:
        CheckFailed: with one line for each failed check.
    """
    failures = list(filter(None, (check.failure() for check in method_checks(method, families, **options))))
    if failures:
        raise CheckFailed("\n".join(failures))


def parametrize_with_checks(
    methods: Iterable[str | type[Method] | Method], families: Sequence[str] | None = None, **options: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives pytest one test for each check; the test takes ``check`` and calls it.

    Slow checks carry the marker ``slow``. Other arguments are those of `method_checks`.
    """
    import pytest

    checks = [check for method in methods for check in method_checks(method, families, **options)]
    marked = [pytest.param(c, id=str(c), marks=[pytest.mark.slow] if c.slow else []) for c in checks]
    return pytest.mark.parametrize("check", marked)


def _scopes(method: Method) -> tuple[str, ...]:
    """The scopes that differ: without parts, or with owners that take no notice of it, there is one."""
    shared, own = (replace(method, scope=cast(Any, scope)) for scope in SCOPES)
    differ = any(shared.owners(task, ["a", "b"]) != own.owners(task, ["a", "b"]) for task in (None, "a", "b"))
    return SCOPES if method.at and differ else (method.scope,)


def _chosen(case: Case) -> tuple[Callable[[Case], None], ...]:
    """The checks of a method on a family: all, or the one of its refusal, or of what else attaching ends in."""
    try:
        error = refused(case)
    except Exception:
        return (attaches,)
    return _functions(case.method) if error is None else (refuses_in_one_sentence,)


def _functions(method: Method | None) -> tuple[Callable[[Case], None], ...]:
    """The checks for a method; all there are for None."""
    always = (*_OF_THE_CLASS, *_ALWAYS)
    if method is not None and not isinstance(method.declares, Declarations):
        return (declarations.declares_itself,)
    if method is None:
        return (*always, *_IF, attaches, refuses_in_one_sentence)
    return (*always, *(check for check, applies in _IF.items() if applies(method)))


def _known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f'there is no {what} "{name}"', hint=did_you_mean(name, known))
