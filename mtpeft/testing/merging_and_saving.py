"""Checks of what leaves the host: weights it is folded into, and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.backbone.extract import Extractor
from mtpeft.errors import MtpeftError, NotApplicable, UsageError
from mtpeft.hosts import load
from mtpeft.peft.host import Host
from mtpeft.peft.merging import plain_state
from mtpeft.testing.case import Case, part_parameters

_HEADER = 1024
_HEADER_PER_TENSOR = 256


def merges_into_plain_timm(case: Case) -> None:
    """Merged weights load strictly into a plain model and give the unmerged outputs; unmerging is bit-exact.

    On a family where a weight cannot hold the change, merging refuses instead; never on ``vit``.
    """
    host = case.host(random=True)
    for task in ("a", "b") if case.method.declares.needs_task_id or case.method.scope == "task" else ("a", None):
        reason = refusal(partial(host.merged_state, task), NotApplicable)
        if reason is not None:
            case.expect(case.family != "vit", f"it declares that it merges, and refuses: {reason.message}")
            expect_sentence(case, reason)
            refuses_to_merge(case)
            return
        _same_when_merged(case, host, task)


def _same_when_merged(case: Case, host: Host, task: str | None) -> None:
    images, frozen = case.images(host), plain_state(host.backbone, {})
    plain, state = case.backbone(), host.merged_state(task)
    case.expect(set(state) == set(plain.state_dict()), "the merged state has other keys than timm's model")
    plain.load_state_dict(state, strict=True)
    with torch.no_grad():
        unmerged = host(images, task)
        case.close(Extractor(plain, host.image_size)(plain, images), unmerged, "merged and unmerged outputs")
        host.merge(task)
        case.close(host(images, task), unmerged, "outputs of the merged host and the unmerged one")
        other = "c" if task != "c" else "a"
        case.expect(refusal(lambda: host(images, other), UsageError) is not None, f"merged for {task}, it ran {other}")
        host.unmerge()
        case.same(host(images, task), unmerged, "outputs before merging and after unmerging")
    case.same(plain_state(host.backbone, {}), frozen, "backbone weights before merging and after unmerging")


def refuses_to_merge(case: Case) -> None:
    """Declared not mergeable: merging is refused in one sentence and changes nothing."""
    host = case.host(random=True)
    images, frozen = case.images(host), plain_state(host.backbone, {})
    with torch.no_grad():
        before = host(images, "a")
    for door in (host.merged_state, host.merge):
        reason = refusal(partial(door, "a"), NotApplicable)
        expect_refusal(case, reason, f"{door.__name__} does not refuse, and it declares that it does not merge")
    with torch.no_grad():
        case.same(host(images, "a"), before, "outputs before and after a refused merge")
    case.same(plain_state(host.backbone, {}), frozen, "backbone weights before and after a refused merge")


def saves_what_it_trains(case: Case) -> None:
    """Files hold 4 bytes for each parameter, the buffers and a small header; loaded, they give identical outputs."""
    host = case.host(("a", "b"), random=True)
    with TemporaryDirectory() as folder:
        host.save(folder)
        for owner in host.owners():
            name = "shared" if owner == "shared" else f"task.{owner}"
            _expect_size(case, Path(folder) / f"{name}.safetensors", host.tensors(owner))
        extra = {path.name for path in Path(folder).iterdir()} - _expected_files(host)
        case.expect(not extra, f"it writes files that nobody asked for: {sorted(extra)}")
        again = load(folder, case.backbone(), {case.name: case.copy()}).eval()
    case.same(again.tensors("shared"), host.tensors("shared"), "shared tensors before saving and after loading")
    images = case.images(host)
    with torch.no_grad():
        for task in host.tasks:
            case.same(
                again(images, task), host(images, task), f"outputs of task {task} before saving and after loading"
            )


def _expect_size(case: Case, path: Path, tensors: dict[str, Tensor]) -> None:
    payload = sum(
        4 * t.numel() if isinstance(t, nn.Parameter) else t.numel() * t.element_size() for t in tensors.values()
    )
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        names = set(json.loads(file.read(header))) - {"__metadata__"}
    size, allowed = path.stat().st_size, _HEADER + _HEADER_PER_TENSOR * len(tensors)
    case.expect(names == set(tensors), f"{path.name} holds {len(names)} tensors, and its owner has {len(tensors)}")
    case.expect(
        size == 8 + header + payload,
        f"{path.name} has {size} bytes, and {payload} are trained beside {header} of header",
    )
    case.expect(header <= allowed, f"the header of {path.name} takes {header} bytes, and {allowed} are allowed")


def _expected_files(host: Host) -> set[str]:
    tasks = [f"task.{task}.safetensors" for task in host.tasks]
    heads = [f"head.{name}.safetensors" for name in host.heads]
    kept = [f"method.{name}.safetensors" for name, routine in host.routines.items() if routine.kept()]
    return {"adapter.json", "shared.safetensors", *tasks, *heads, *kept}


def merging_nothing_changes_nothing(case: Case) -> None:
    """Before training, an identity merges into the very weights of the backbone."""
    host = case.host(("a",))
    if part_parameters(host) and refusal(lambda: host.merged_state("a"), NotApplicable) is None:
        case.close(host.merged_state("a"), case.backbone().state_dict(), "merged and frozen weights at the start", 1e-6)


def refusal(call: Callable[[], Any], *kinds: type[MtpeftError]) -> MtpeftError | None:
    """The refusal that a call ends in, or None."""
    try:
        call()
    except kinds as error:
        return error
    return None


def expect_refusal(case: Case, error: MtpeftError | None, otherwise: str) -> None:
    """There is a refusal, in one sentence."""
    case.expect(error is not None, otherwise)
    if error is not None:
        expect_sentence(case, error)


def expect_sentence(case: Case, error: MtpeftError) -> None:
    """A refusal is one line that names what is refused."""
    good = 10 < len(error.message) < 250 and "\n" not in error.message
    case.expect(good, f'its refusal is no single sentence: "{error.message}"')
