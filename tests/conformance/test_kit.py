"""The kit finds what it is for: each broken method fails the check that is about it, and a sound one passes all."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from support import broken_methods as broken
from support.continual_methods import Consolidation, IsolatedEnsemble, PromptPool, RandomProjection
from support.doubles import Accumulated, Prefixes, Steered
from torch import nn

from mtpeft.api import Context, Head, Method, MtpeftError, Part, UsageError
from mtpeft.peft import contents, hooks, lowrank, merging, store
from mtpeft.peft.attach import Attachments
from mtpeft.peft.host import Host
from mtpeft.peft.ownership import Ownership
from mtpeft.peft.running import Running
from mtpeft.testing import Check, CheckFailed, check_method, method_checks, parametrize_with_checks
from mtpeft.training.routines import Routines

FOUND = {
    broken.NoIdentity: "starts_as_the_backbone",
    broken.HiddenIdentity: "does_not_start_as_the_backbone",
    broken.BothZero: "is_alive",
    broken.WritesTheBackbone: "leaves_the_backbone_alone",
    broken.MergesWrong: "merges_into_plain_timm",
    broken.DeniesMerging: "refuses_to_merge",
    broken.ClaimsToMerge: "merges_into_plain_timm",
    broken.MixesSamples: "evaluates_samples_alone",
    broken.CountsItsCalls: "copies_are_independent",
    broken.ReadsTheOriginal: "copies_are_independent",
    broken.ForgetsItsMask: "saves_what_it_trains",
    broken.KeepsABias: "settings_round_trip",
    broken.DrawsElsewhere: "repeats_from_its_seed",
    broken.SpeaksOfNothing: "refuses_in_one_sentence",
    broken.NotADataclass: "declares_itself",
    broken.DeclaresASetting: "declares_itself",
    broken.DeclaresBeside: "declares_itself",
    broken.DeclaresNoValue: "declares_itself",
    broken.NoCategory: "declares_itself",
    broken.AcceptsAWord: "declares_itself",
    broken.AcceptsNothingKnown: "declares_itself",
    broken.DeclaresAWord: "declares_itself",
    broken.NeverPasses: "declares_itself",
    broken.NeverLearns: "declares_itself",
    broken.Undocumented: "declares_itself",
    broken.MisspeltHook: "spells_what_it_overrides",
    broken.HookOnTheMethod: "spells_what_it_overrides",
    broken.MisspellsInItsPart: "spells_what_it_overrides",
    broken.NoPattern: "builds_parts",
    broken.ForgetsToReturn: "refuses_in_one_sentence",
    broken.MatchesNothing: "refuses_in_one_sentence",
    broken.NoRange: "refuses_settings_out_of_range",
    broken.GivesOneToken: "keeps_shapes",
    broken.GivesTooMuch: "attaches",
    broken.GivesALayer: "attaches",
    broken.LeavesATensorBehind: "registers_its_tensors",
    broken.OnePartForAll: "trains_its_own_only",
    broken.NeedsNothing: "asks_for_what_it_needs",
    broken.CountsForNothing: "asks_for_what_it_needs",
    broken.TrainsNothing: "learns_a_batch",
    broken.TwoPasses: "passes_as_often_as_it_says",
    broken.ForgetsItsSteps: "resumes_as_if_uninterrupted",
    broken.ForgetsItsStage: "resumes_in_a_later_stage",
    broken.ChangesTheMode: "calls_hooks_in_order",
    broken.MovesTheFrozen: "keeps_what_is_frozen",
    broken.OpensEverything: "steps_what_gets_gradients",
    broken.HoldsATeacher: "counts_what_it_keeps",
    broken.ActsForOthers: "keeps_isolated_answers",
    broken.AsksInSecret: "passes_as_often_as_it_says",
    broken.PassesForEach: "passes_as_often_as_it_says",
    broken.NobodyPullsTheKeys: "is_alive",
    broken.KeepsTheQueryBeside: "checkpoints",
    broken.LosesItsHead: "resumes_in_a_later_stage",
}
SCOPE = {broken.OpensEverything: "task", broken.ActsForOthers: "task"}
"""Those that are broken under one scope alone; others are tried with what tasks share."""
SOUND = (broken.Sound, broken.Freezes)


@pytest.mark.parametrize("method", FOUND, ids=lambda method: method.__name__)
def test_what_is_broken_is_found(method: type[Method]) -> None:
    scope = SCOPE.get(method, "shared")
    (check,) = [check for check in method_checks(method, ["vit"], [scope]) if check.name == FOUND[method]]
    with pytest.raises(CheckFailed, match=rf"{method.__name__} \({scope}\) on vit: {FOUND[method]}: "):
        check()


def test_all_that_fails_is_told() -> None:
    with pytest.raises(CheckFailed) as failed:
        check_method(broken.NoPattern, ["vit"], slow=False)
    assert [line.split(": ")[1] for line in str(failed.value).splitlines()] == ["builds_parts"]
    with pytest.raises(CheckFailed) as failed:
        check_method(broken.HiddenIdentity, ["vit"], slow=False)
    told = [line.split(": ")[:2] for line in str(failed.value).splitlines()]
    check = "does_not_start_as_the_backbone"
    assert told == [[f"HiddenIdentity ({scope}) on vit", check] for scope in ("shared", "task")]


@pytest.mark.parametrize(
    ("method", "scopes"),
    [
        (broken.Sound, {"shared", "task"}),
        (Prefixes, {"shared", "task"}),
        (Accumulated, {"task"}),
        (RandomProjection, {"shared"}),
        ("linear-probe", {"shared"}),
    ],
)
def test_scopes_are_tried_where_they_differ(method: type[Method] | str, scopes: set[str]) -> None:
    """A method without parts, or whose owners take no notice of its scope, has one."""
    assert {check.case.method.scope for check in method_checks(method, ["vit"], slow=False)} == scopes


def test_a_task_owns_what_it_trains() -> None:
    (check,) = [c for c in method_checks(broken.SharesInSecret, ["vit"], ["task"]) if c.name == "trains_its_own_only"]
    with pytest.raises(CheckFailed, match=r"its scope is task, and 6 tensors are shared: "):
        check()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (broken.BuildsNothing, "BuildsNothing cannot be built: it raises TypeError: .*abstract"),
        (Attachments, "Attachments: .* is no subclass of mtpeft.api.Method"),
    ],
)
def test_what_cannot_be_built_is_told(method: type, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        check_method(method, ["vit"])


def test_an_error_in_a_method_is_told_in_one_line_with_its_place() -> None:
    (check,) = _named(broken.RaisesInAHook, "learns_a_batch", {})
    said = r"learns_a_batch: it raises ValueError: steps are not for me \(broken_methods\.py, line \d+\)$"
    assert re.search(said, check.failure())


def test_the_number_of_stages_is_for_those_who_declare_it() -> None:
    (check,) = _named(broken.SharesOutStages, "learns_a_batch", {})
    assert "learns_a_batch: it raises TypeError: unsupported operand type(s) for /" in check.failure()


def test_a_failure_says_the_number() -> None:
    with pytest.raises(
        CheckFailed, match=r"NoIdentity \(shared\) on vit: starts_as_the_backbone: .* differ by [\d.e-]+"
    ):
        check_method(broken.NoIdentity, ["vit"], scopes=["shared"], slow=False)


@parametrize_with_checks(SOUND, families=["vit", "resnet"], scopes=["task"])
def test_a_sound_method_passes(check: Check) -> None:
    check()


def test_an_expected_failure_has_to_fail() -> None:
    expected = {"evaluates_samples_alone": "it looks at the batch"}
    (check,) = _named(broken.MixesSamples, "evaluates_samples_alone", expected)
    check()
    (check,) = _named(broken.Sound, "evaluates_samples_alone", expected)
    with pytest.raises(CheckFailed, match=r"it is expected to fail \(it looks at the batch\), and passes"):
        check()


def test_a_reason_is_needed() -> None:
    with pytest.raises(UsageError, match='"is_alive" needs a reason'):
        list(method_checks(broken.Sound, ["vit"], expected_failures={"is_alive": ""}))


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"families": ["vitt"]}, 'there is no family "vitt"', 'did you mean "vit"'),
        ({"expected_failures": {"is_alife": "x"}}, 'there is no check "is_alife"', 'did you mean "is_alive"'),
        ({"scopes": ["both"]}, "settings.scope", "shared"),
    ],
)
def test_what_is_misspelt_is_named(arguments: dict, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        list(method_checks(broken.Sound, **arguments))
    assert message in error.value.message and hint in error.value.hint


def test_a_family_that_refuses_gets_one_check() -> None:
    (check,) = method_checks("vpt-deep", ["swin"], ["shared"])
    assert check.name == "refuses_in_one_sentence"
    check()


def test_names_of_checks_are_unique_and_documented() -> None:
    names = [check.name for check in method_checks(broken.Sound, ["vit"], ["shared"])]
    assert len(set(names)) == len(names) > 20
    for check in method_checks(broken.Sound, ["vit"], ["shared"]):
        assert re.match(r"[A-Z`].*\.", check.function.__doc__ or "", re.DOTALL), check.name


def _named(method: type[Method], name: str, expected: dict[str, str]) -> list[Check]:
    checks = method_checks(method, ["vit"], ["shared"], expected_failures=expected)
    return [check for check in checks if check.name == name]


def _broken_core(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """One fault in the core itself."""
    if fault == "a checkpoint reads its route late":
        monkeypatch.setattr(hooks.ModuleHook, "_restore", lambda self, x: None)
    elif fault == "samples see the parts of other tasks":
        monkeypatch.setattr(lowrank, "_mask", lambda plain, z, *rest: torch.ones_like(z))
    elif fault == "a fork mixes samples up":
        monkeypatch.setattr(hooks, "copied", lambda x, rows, size: x[[(row + 1) % size for row in rows]])
    elif fault == "running statistics move":
        monkeypatch.setattr(Host, "train", nn.Module.train)
    elif fault == "a hook stays behind":
        detach = Attachments.detach
        monkeypatch.setattr(
            Attachments, "detach", lambda self: (detach(self), self.backbone.register_forward_hook(print))
        )
    elif fault == "files hold more than was trained":
        write = store.write_tensors
        monkeypatch.setattr(store, "write_tensors", lambda path, t: write(path, {**t, "more": torch.ones(1)}))
    elif fault == "unmerging rounds":
        swap = merging.swap_in
        monkeypatch.setattr(
            merging, "swap_in", lambda model, new: swap(model, {k: t * (1 + 1e-6) for k, t in new.items()})
        )


CORE_FAULTS = [
    ("a checkpoint reads its route late", "checkpoints", "vit", "task"),
    ("samples see the parts of other tasks", "mixed_equals_separate", "vit", "task"),
    ("a fork mixes samples up", "several_tasks_take_one_pass", "vit", "task"),
    ("running statistics move", "leaves_the_backbone_alone", "resnet", "shared"),
    ("a hook stays behind", "leaves_the_backbone_alone", "vit", "shared"),
    ("files hold more than was trained", "saves_what_it_trains", "vit", "shared"),
    ("unmerging rounds", "merges_into_plain_timm", "vit", "shared"),
]


@pytest.mark.parametrize(("fault", "name", "family", "scope"), CORE_FAULTS)
def test_a_fault_of_the_core_is_found(monkeypatch, fault: str, name: str, family: str, scope: str) -> None:
    (check,) = [c for c in method_checks("lora", [family], [scope]) if c.name == name]
    check()
    _broken_core(monkeypatch, fault)
    with pytest.raises((CheckFailed, MtpeftError)):
        check()


STAGE_FAULTS = {
    "who is frozen is not saved": (broken.Freezes, "resumes_in_a_later_stage", "shared"),
    "what routines keep is not saved": (Consolidation, "resumes_in_a_later_stage", "shared"),
    "heads make no room for saved statistics": (IsolatedEnsemble, "resumes_in_a_later_stage", "task"),
    "hooks get the parts of frozen owners": (broken.Freezes, "steps_what_gets_gradients", "shared"),
    "everything gets a gradient": (Accumulated, "steps_what_gets_gradients", "task"),
    "hooks at the end find dropout on": (Consolidation, "calls_hooks_in_order", "shared"),
    "penalties are left out": (PromptPool, "is_alive", "shared"),
    "parts see what was given for others": (Steered, "mixed_equals_separate", "task"),
    "a checkpoint finds what was given last": (PromptPool, "checkpoints", "shared"),
    "statistics are not counted": (RandomProjection, "counts_what_it_keeps", "shared"),
}


def _break_between_stages(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """One fault in what the core does for methods that go from stage to stage."""
    described = contents.describe
    match fault:
        case "who is frozen is not saved":
            monkeypatch.setattr("mtpeft.peft.host.describe", lambda *args: replace(described(*args), frozen=[]))
        case "what routines keep is not saved":
            monkeypatch.setattr("mtpeft.peft.host.describe", lambda *args: replace(described(*args), kept={}))
        case "heads make no room for saved statistics":
            monkeypatch.setattr(Head, "fit", lambda self, shapes: None)
        case "hooks get the parts of frozen owners":
            monkeypatch.setattr(Context, "parts", lambda self, method, tasks: self.host.parts_of(method, tasks))
        case "everything gets a gradient":
            focus = Host.focus
            monkeypatch.setattr(Host, "focus", lambda self, tasks: focus(self, None))
        case "hooks at the end find dropout on":
            monkeypatch.setattr("mtpeft.training.routines.evaluating", nullcontext)
        case "penalties are left out":
            monkeypatch.setattr(Routines, "penalties", lambda self: iter(()))
        case "parts see what was given for others":
            monkeypatch.setattr(Part, "given", lambda self, name: self.pass_state.current.given.get(name))
        case "a checkpoint finds what was given last":
            last: dict[str, torch.Tensor] = {}
            run = Running.run
            monkeypatch.setattr(
                Running, "run", lambda self, images, route, given=None: last.update(given) or run(self, images, route)
            )
            monkeypatch.setattr(Part, "given", lambda self, name: last.get(name))
        case "statistics are not counted":
            count = Ownership.count
            monkeypatch.setattr(Ownership, "count", lambda self: replace(count(self), buffers=0))


@pytest.mark.parametrize("fault", STAGE_FAULTS)
def test_a_fault_of_the_core_between_stages_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    method, name, scope = STAGE_FAULTS[fault]
    (check,) = [c for c in method_checks(method, ["vit"], [scope]) if c.name == name]
    check()
    _break_between_stages(monkeypatch, fault)
    assert check.failure()
