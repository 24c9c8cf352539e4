"""Checks of what a method does: its start, its training, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.backbone import state_sha256
from mtpeft.backbone.extract import Extractor
from mtpeft.backbone.features import Features
from mtpeft.peft.host import Host
from mtpeft.peft.merging import plain_state
from mtpeft.testing.case import Case, difference, owned, part_parameters, tensors
from mtpeft.testing.training import Training, train

_REGISTERED = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def starts_as_the_backbone(case: Case) -> None:
    """Declared an identity: features are bit-identical to the plain backbone's before training, in either mode."""
    host = case.host()
    images, plain = case.images(host), plain_features(case)
    for training in (False, True):
        with torch.no_grad():
            case.same(host.train(training)(images, "a"), plain, f"features of backbone and host (training: {training})")


def does_not_start_as_the_backbone(case: Case) -> None:
    """Declared no identity, which has to be true."""
    host = case.host()
    with torch.no_grad():
        features = host(case.images(host), "a")
    case.expect(difference(features, plain_features(case)) > 0, "it declares no identity at init, and is one")


def registers_its_tensors(case: Case) -> None:
    """A part's tensors are parameters or buffers, which move, are cast and are saved with the host."""
    host = case.host(("a",))
    for module in host.parts.modules():
        for name, value in vars(module).items():
            registered = name in _REGISTERED or not list(tensors(value))
            kept = f"{type(module).__name__}.{name}"
            case.expect(registered, f"{kept} is neither a parameter nor a buffer: use register_buffer")


def is_alive(case: Case) -> None:
    """Every trained tensor of a part gets a gradient other than zero within two steps, from outputs or penalties."""
    host = case.host()
    asleep = set(part_parameters(host))
    training = Training(case, host, host.tasks, steps=2, rate=0.1)
    for _ in range(2):
        for loss in [*_squares(case, host), *_penalties(training)]:
            if loss.requires_grad:
                loss.backward()
        asleep -= {name for name, p in part_parameters(host).items() if p.grad is not None and bool(p.grad.any())}
        trained = list(host.trainable(host.tasks).values())
        if trained:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            torch.optim.SGD(trained, 0.1).step()
        host.zero_grad(set_to_none=True)
    case.expect(not asleep, f"{len(asleep)} trained tensors never get a gradient: {', '.join(sorted(asleep)[:3])}")


def _squares(case: Case, host: Host) -> Iterator[Tensor]:
    for task in host.tasks:
        yield host.predict(case.images(host), task).square().sum()


def _penalties(training: Training) -> Iterator[Tensor]:
    if training.host.routines:
        training.host.train()
        training.meet_batch()
        yield from training.routines.penalties()
        training.host.eval()


def trains_its_own_only(case: Case) -> None:
    """What requires a gradient is what the host lists and counts; nothing of the backbone does."""
    host = case.host()
    listed = host.trainable(host.tasks)
    open_ = {id(p) for p in host.parameters() if p.requires_grad}
    case.expect(open_ == {id(p) for p in listed.values()}, f"{len(open_)} tensors train, and {len(listed)} are listed")
    twice = sorted(name for name, p in listed.items() if sum(p is other for other in listed.values()) > 1)
    case.expect(not twice, f"{' and '.join(twice[:2])} are one tensor: what parts share is built by Method.common")
    shared = sorted(host.shared_parameters()) if case.method.scope == "task" else []
    case.expect(not shared, f"its scope is task, and {len(shared)} tensors are shared: {', '.join(shared[:3])}")
    frozen = {id(p) for p in host.backbone.parameters()}
    case.expect(not frozen & open_, "it trains tensors of the backbone")
    counted, summed = host.count().parts, sum(p.numel() for p in part_parameters(host).values())
    case.expect(counted == summed, f"{counted} parameters are counted, and {summed} train")


def leaves_the_backbone_alone(case: Case) -> None:
    """After training, the backbone's tensors and buffers have the same hash; after `detach` nothing is left on it."""
    backbone = case.backbone()
    before = anatomy(backbone)
    hashes = tensor_hash(backbone), state_sha256(backbone.state_dict())
    host = case.host(backbone=backbone)
    images = case.images(host)
    train(case, host, ["a", "b"])
    case.expect(state_sha256(plain_state(backbone, {})) == hashes[1], "training changed the backbone's state")
    case.expect(host.detach() is backbone, "detach gives another module")
    case.expect(tensor_hash(backbone) == hashes[0], "a tensor or buffer of the backbone changed")
    for what, found in anatomy(backbone).items():
        odd = [pair for pair in zip(before[what], found, strict=False) if pair[0] != pair[1]][:1]
        case.expect(found == before[what], f"after detach the backbone's {what} differ: {odd or 'their number'}")
    with torch.no_grad():
        again = Extractor(backbone, host.image_size)(backbone, images)
    case.same(again, plain_features(case), "features of the detached backbone and a new one")


def isolates_tasks(case: Case) -> None:
    """Training one task, adding one and removing one leave every tensor that another owns bit-identical.

    Replay and distillation train earlier tasks too, and say so; outputs may move where the other's parts act for both.
    """
    host = case.host(("a", "b"), random=True)
    images, mine = case.images(host), owned(host, "a")
    alone = "a" not in Training(case, host, ["b"], steps=1, rate=0.0).routines.trains()
    apart = "b" not in host.ownership.acting("a")
    with torch.no_grad():
        before = host.predict(images, "a")
    train(case, host, ["b"])
    if alone:
        case.same(owned(host, "a"), mine, "tensors of task a before and after training b")
    if alone and apart and not host.shared_parameters():
        with torch.no_grad():
            case.same(host.predict(images, "a"), before, "outputs of task a before and after training b")
    mine = owned(host, "a")
    with torch.no_grad():
        before = host.predict(images, "a")
    host.add_task("later")
    host.remove_task("b")
    case.same(owned(host, "a"), mine, "tensors of task a before and after adding and removing others")
    if apart:
        with torch.no_grad():
            case.same(
                host.predict(images, "a"), before, "outputs of task a before and after adding and removing others"
            )


def copies_are_independent(case: Case) -> None:
    """A deep copy gives the same outputs and reads its own parts."""
    host = case.host(random=True)
    twin, images = copy.deepcopy(host), case.images(host)
    with torch.no_grad():
        before = host(images, "a")
        case.same(twin(images, "a"), before, "outputs of host and copy")
        case.randomize(twin, seed=5)
        case.same(host(images, "a"), before, "outputs of the host before and after its copy changed")
        moved = difference(twin(images, "a"), before)
    case.expect(moved > 0 or not part_parameters(host), "the copy's outputs do not follow its own parts")


def repeats_from_its_seed(case: Case) -> None:
    """The same seed gives the same parts and, dropout included, the same training."""
    runs = []
    for _ in range(2):
        host = case.host(("a", "b"), seed=3)
        losses = train(case, host, ["a", "b"], steps=2)
        runs.append(({owner: owned(host, owner) for owner in host.owners()}, losses))
    case.same(runs[0][0], runs[1][0], "trained tensors of two runs from one seed")
    case.expect(runs[0][1] == runs[1][1], f"losses of two runs from one seed differ: {runs[0][1]} and {runs[1][1]}")


def evaluates_samples_alone(case: Case) -> None:
    """Features of a sample do not depend on the batch it stands in, nor on its place there."""
    host = case.host(random=True)
    images = case.images(host, 5)
    with torch.no_grad():
        together = host(images, "a")
        case.close(Features.cat([host(image[None], "a") for image in images]), together, "outputs of one and of five")
        case.close(host(images.flip(0), "a")[torch.arange(4, -1, -1)], together, "outputs in two orders")


def learns_a_batch(case: Case) -> None:
    """With the head frozen, fifteen steps at one of three rates bring a batch's loss down by at least a twentieth."""
    runs = []
    for rate in (1e-2, 1e-1, 1e-3):
        host = case.host(("a",))
        host.heads.untrained["a"] = {name for name, _ in host.heads["a"].named_parameters()}
        if not host.parts.active_parts("a", host.tasks):
            return
        losses = train(case, host, ["a"], steps=15, rate=rate)
        if min(losses[-3:]) < 0.95 * losses[0]:
            return
        runs.append(f"from {losses[0]:.4g} to {losses[-1]:.4g} at rate {rate}")
    case.expect(False, f"the loss went {', '.join(runs)}")


def is_finite_in_bfloat16(case: Case) -> None:
    """Under bf16 autocast outputs and gradients are finite, and outputs near those of fp32."""
    host = case.host(random=True)
    images = case.images(host)
    plain = host.predict(images, "a").detach()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = host.predict(images, "a")
    case.close(outputs.float(), plain, "outputs in bf16 and fp32", tolerance=0.5)
    if part_parameters(host):
        outputs.float().square().sum().backward()
    wrong = [n for n, p in part_parameters(host).items() if p.grad is not None and not p.grad.isfinite().all()]
    case.expect(not wrong, f"gradients are not finite in bf16: {', '.join(wrong[:3])}")


def plain_features(case: Case) -> Features:
    """What the backbone gives with nothing attached."""
    backbone = case.backbone()
    host = Host(backbone)
    host.detach()
    with torch.no_grad():
        return Extractor(backbone, host.image_size)(backbone, case.images(host))


def tensor_hash(backbone: nn.Module) -> str:
    """Of every parameter and buffer, also of those that are not saved."""
    return state_sha256(dict([*backbone.named_parameters(), *backbone.named_buffers()]))


def anatomy(backbone: nn.Module) -> dict[str, list[Any]]:
    """Everything about a model but its values."""
    modules = list(backbone.named_modules())
    return {
        "keys": list(backbone.state_dict()),
        "parameters": [(name, p.requires_grad) for name, p in backbone.named_parameters()],
        "buffers": [name for name, _ in backbone.named_buffers()],
        "classes": [(path, type(module)) for path, module in modules],
        "modes": [(path, module.training) for path, module in modules],
        "hooks": [(path, name, len(getattr(module, name))) for path, module in modules for name in _HOOKS],
        "attributes": [(path, sorted(vars(module))) for path, module in modules],
    }
