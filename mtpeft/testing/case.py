"""One method on one family under one scope: what every check of the kit is handed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from traceback import extract_tb
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.addresses import ParameterKey
from mtpeft.backbone.features import Features, FeaturesInfo
from mtpeft.errors import MtpeftError
from mtpeft.names import SHARED
from mtpeft.peft.host import Host
from mtpeft.peft.method import Method
from mtpeft.plugins import in_words, resolve
from mtpeft.settings import build
from mtpeft.task import Head
from mtpeft.testing.zoo import zoo

CLASSES = ("first", "second", "third")
TASKS = ("a", "b", "c")
STAGED = {"one": ("first", "second"), "two": ("third", "fourth", "fifth")}
"""Tasks of a group that are met one after the other, and their classes."""
TOLERANCE = 1e-5


class CheckFailed(AssertionError):
    """A check that a method does not pass; the message names method, family, scope, check and the number."""


class Readout(Head):
    """Logits ``(B, K)`` of everything a host gives: pooled vector, maps and prefix tokens."""

    def __init__(self, info: FeaturesInfo, classes: Sequence[str] = CLASSES) -> None:
        super().__init__()
        self.classes, self.widths = tuple(classes), _widths(info)
        self.weight = nn.Parameter(torch.randn(len(classes), sum(self.widths)) / sum(self.widths) ** 0.5)

    def forward(self, features: Features) -> Tensor:
        seen = [features.pooled, *(m.square().mean((2, 3)) for m in features.maps)]
        if features.prefix is not None:
            seen.append(features.prefix.square().mean(1))
        return F.linear(torch.cat(seen, 1), self.weight)

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = tuple(name for name in classes if name not in self.classes)
        widths = self.widths if info is None else _widths(info)
        columns = self.weight.detach().split(self.widths, 1)
        grown = [F.pad(own, (0, width - own.shape[1], 0, len(new))) for own, width in zip(columns, widths, strict=True)]
        self.classes, self.widths, self.weight = self.classes + new, widths, nn.Parameter(torch.cat(grown, 1))


def _widths(info: FeaturesInfo) -> list[int]:
    return [info.pooled, *info.channels] + ([info.channels[-1]] if info.prefix else [])


@dataclass
class Case:
    """A configured method, the family it is tried on, and how to build, feed and compare hosts.

    Attributes:
        name: how messages call the method.
        method: configured, with the scope of this case.
        family: a key of `zoo`.
        check: name of the running check, for messages.
    """

    name: str
    method: Method
    family: str
    check: str = field(default="", compare=False)

    def expect(self, condition: bool, text: str) -> None:
        """Raises CheckFailed with ``text`` unless ``condition`` holds."""
        if not condition:
            raise CheckFailed(f"{self.where}: {self.check}: {text}")

    @property
    def where(self) -> str:
        """What is checked, for messages."""
        return f"{self.name} ({self.method.scope}) on {self.family}"

    def copy(self, **changes: Any) -> Method:
        """The method configured again, so that no check sees another's state."""
        return type(self.method)(**{**asdict(self.method), **changes})

    def backbone(self) -> nn.Module:
        return zoo()[self.family]()

    def host(
        self, tasks: Sequence[str] = TASKS, *, seed: int = 0, random: bool = False, backbone: nn.Module | None = None
    ) -> Host:
        """A host in eval mode with a readout for each task; ``random`` moves every part away from where it starts."""
        torch.manual_seed(seed)
        host = Host(backbone or self.backbone(), [(self.name, self.copy())], tasks)
        for task in tasks:
            host.add_head(task, self.head(host))
            host.bind_head(task, task)
        if random:
            self.randomize(host, seed)
        return host.eval()

    def head(self, host: Host, classes: Sequence[str] = CLASSES) -> Head:
        """The method's own classifier, or a readout of everything."""
        made = host.methods[self.name].classifier(host.info, classes)
        return Readout(host.info, classes) if made is None else cast(Head, made)

    @torch.no_grad()
    def randomize(self, host: Host, seed: int = 0) -> None:
        """Move every trained tensor of a part, by a fifth of its own size or .05."""
        generator = torch.Generator().manual_seed(seed + 1)
        for parameter in part_parameters(host).values():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(step * max(0.2 * float(parameter.std(correction=0)), 0.05))

    def images(self, host: Host, count: int = 4, seed: int = 0) -> Tensor:
        """``(count, 3, H, W)`` in the host's precision, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed + 100)
        images = torch.randn(count, 3, *host.image_size, generator=generator)
        return images.to(next(host.backbone.parameters()).dtype)

    def close(self, mine: Any, other: Any, what: str, tolerance: float = TOLERANCE) -> None:
        """Expects two outputs to agree to ``tolerance`` of the larger one's size (of 1, where it is smaller than 1)."""
        distance = difference(mine, other)
        self.expect(distance <= tolerance, f"{what} differ by {distance:.2g}, and {tolerance:g} is allowed")

    def close_gradients(self, mine: Any, other: Any, what: str) -> None:
        """The same in units of each tensor's own largest value, or a tenth of the largest of all."""
        distance = difference(mine, other, floor=max(size(other) / 10, 1e-12))
        self.expect(distance <= TOLERANCE, f"{what} differ by {distance:.2g}, and {TOLERANCE:g} is allowed")

    def same(self, mine: Any, other: Any, what: str) -> None:
        """Expects two outputs to be bit-identical."""
        equal = all(torch.equal(a, b) for a, b in zip(tensors(mine), tensors(other), strict=True))
        self.expect(equal, f"{what} are not bit-identical: they differ by {difference(mine, other):.2g}")


def make_method(method: str | type[Method] | Method, settings: dict[str, Any]) -> tuple[str, Method]:
    """``(name, configured method)`` of an id, a class or a configured method.

    Raises:
        UsageError: for settings that do not fit.
        CheckFailed: for what is no method, or cannot be built.
    """
    if isinstance(method, Method):
        return type(method).__name__, type(method)(**{**asdict(method), **settings})
    cls = resolve("methods", method) if isinstance(method, str) else method
    name = method if isinstance(method, str) else cls.__name__
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise CheckFailed(f"{name}: {cls!r} is no subclass of mtpeft.api.Method")
    try:
        return name, build(cls, settings, "settings")
    except MtpeftError:
        raise
    except Exception as error:
        raise CheckFailed(f"{name} cannot be built: it raises {said(error, cls)}") from error


def said(error: Exception, cls: type) -> str:
    """An exception on one line, with the place in the file of ``cls`` where it arose."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
    return in_words(error) + (f" ({Path(str(file)).name}, line {lines[-1]})" if lines else "")


def part_parameters(host: Host) -> dict[str, nn.Parameter]:
    """What trains in the parts, heads apart."""
    return {name: p for name, p in host.trainable(host.tasks).items() if ParameterKey.parse(name).kind == "part"}


def owned(host: Host, owner: str) -> dict[str, Tensor]:
    """Copies of everything an owner has, its head included."""
    found = {name: t.detach().clone() for name, t in host.tensors(owner).items()}
    if owner != SHARED and owner in host.head_names:
        head = host.head_names[owner]
        found |= {str(ParameterKey("head", head, n)): t.clone() for n, t in host.head_of(owner).state_dict().items()}
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of features, logits, or (nested) lists and dictionaries of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Features):
        yield from tensors([value.pooled, value.maps, value.prefix])
    elif isinstance(value, dict):
        yield from tensors([value[key] for key in sorted(value)])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def difference(mine: Any, other: Any, floor: float = 1.0) -> float:
    """Largest difference of a value, over the other tensor's largest value or ``floor``; inf where shapes differ."""
    worst = 0.0
    for a, b in zip(tensors(mine), tensors(other), strict=True):
        if a.shape != b.shape or not a.isfinite().all():
            return float("inf")
        a, b = a.detach().double(), b.detach().double()
        if a.numel():
            worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), floor))
    return worst if worst == worst else float("inf")


def size(value: Any) -> float:
    """The largest absolute value of all tensors."""
    return max((float(t.abs().max()) for t in tensors(value) if t.numel()), default=0.0)


def weighted(value: Any) -> Tensor:
    """A scalar of every number of an output; a sample's share is the same wherever it stands in the batch."""
    total = torch.zeros(())
    for tensor in tensors(value):
        weights = torch.cos(torch.arange(tensor[0].numel(), dtype=torch.float32)).view_as(tensor[0])
        total = total + (tensor * weights).sum() / tensor[0].numel() ** 0.5
    return total


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies of all gradients, zeros where there is none; they are cleared."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return found
