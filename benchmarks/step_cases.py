"""What `step_costs.py` measures: training steps that differ in one thing each, ready to be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from step_written import HandLora, LoopHydraLora
from torch import Tensor, nn

import mtpeft
from mtpeft.api import Method, NotApplicable
from mtpeft.peft.host import Host
from mtpeft.plugins import registry, resolve

MODEL = "vit_tiny_patch16_224"
CLASSES = tuple("abcdefghij")
TASKS = ("one", "two", "three")


@dataclass
class Case:
    """One training step that can be repeated.

    Attributes:
        group: the table it stands in.
        loss: the forward pass.
        trained: what the optimizer changes.
        model: everything whose tensors are no activations.
        blocks: the backbone's blocks, to see which of them a gradient reaches.
    """

    group: str
    name: str
    loss: Callable[[], Tensor]
    trained: Sequence[nn.Parameter]
    model: nn.Module
    blocks: Sequence[nn.Module] = ()
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def step(self) -> None:
        """Forward, backward, update."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Data:
    """One batch at one size, with a target for every kind of task."""

    size: int
    batch: int

    def images(self) -> Tensor:
        return torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))

    def targets(self, kind: str) -> list[dict[str, Any]]:
        """Three boxes in every image, or a mask in stripes, or a label."""
        side, about = self.size, {"classes": CLASSES, "size": (self.size, self.size)}
        corner = torch.tensor([[0.1, 0.1], [0.4, 0.5], [0.6, 0.2]]) * side
        boxes = torch.cat([corner, corner + 0.3 * side], 1)
        rows = torch.arange(side).div(side / len(CLASSES), rounding_mode="floor").to(torch.uint8)
        own = {
            "cls": {"label": torch.tensor(3)},
            "det": {"boxes": boxes, "labels": torch.tensor([0, 1, 2])},
            "seg": {"mask": rows[:, None].expand(side, side)},
        }[kind]
        return [{**about, **own} for _ in range(self.batch)]


def backbone(size: int) -> nn.Module:
    """Random weights: they cost what trained ones cost."""
    torch.manual_seed(0)
    return timm.create_model(MODEL, pretrained=False, num_classes=0, img_size=size)


def plain(data: Data, name: str, train: bool) -> Case:
    """The bare timm model with a linear layer behind it: no host."""
    model = backbone(data.size).requires_grad_(train)
    head, images, labels = nn.Linear(model.num_features, len(CLASSES)), data.images(), torch.full((data.batch,), 3)

    def loss() -> Tensor:
        return F.cross_entropy(head(model(images)), labels)

    trained = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    return Case("reference", name, loss, trained, nn.ModuleList([model, head]), list(model.blocks))


def hosted(data: Data, name: str, method: Method, group: str = "method", kind: str = "cls", **settings: Any) -> Case:
    """A method through the host, with the head of a task type and its settings."""
    head = mtpeft.head(kind, CLASSES, **settings)
    host = mtpeft.adapt(backbone(data.size), [("method", method)], {"one": head}).train()
    task, images, targets = resolve("tasks", kind)(**settings), data.images(), data.targets(kind)

    def loss() -> Tensor:
        head = host.head_of("one")
        return sum(task.loss(head, head(host(images, "one")), targets).values())

    return _of_host(group, name, loss, host, ["one"])


def built_in(data: Data) -> Iterator[Case]:
    """Every method with its default settings, but for those that make no sense on a ViT."""
    for name in sorted(registry("methods")):
        with suppress(NotApplicable):
            yield hosted(data, name, resolve("methods", name)())


def _of_host(group: str, name: str, loss: Callable[[], Tensor], host: Host, tasks: list[str]) -> Case:
    return Case(group, name, loss, list(host.trainable(tasks).values()), host, list(host.backbone.blocks))


def checkpointed(data: Data, name: str, method: Method) -> Case:
    case = hosted(data, name, method, "memory")
    case.model.checkpointing()
    return case


def mixed(data: Data, name: str, method: Method, together: bool) -> Case:
    """Three tasks of classification in one mixed batch, or one pass for each."""
    host = mtpeft.adapt(backbone(data.size), [("method", method)], dict.fromkeys(TASKS, mtpeft.head("cls", CLASSES)))
    images = data.images()[: data.batch // len(TASKS) * len(TASKS)]
    names = [TASKS[index % len(TASKS)] for index in range(len(images))]
    rows = {task: [i for i, name in enumerate(names) if name == task] for task in TASKS}

    def own(task: str, features: Any) -> Tensor:
        return F.cross_entropy(host.head_of(task)(features), torch.full((len(features),), 3))

    def one_pass() -> Tensor:
        features = host(images, names)
        return sum(own(task, features[torch.tensor(rows[task])]) for task in TASKS)

    def three_passes() -> Tensor:
        return sum(own(task, host(images[rows[task]], task)) for task in TASKS)

    return _of_host("mixed", name, one_pass if together else three_passes, host.train(), list(TASKS))


def by_hand(data: Data) -> Case:
    """LoRA on q and v, written into the timm model as one would without a toolkit."""
    model = backbone(data.size).requires_grad_(False).train()
    for block in model.blocks:
        block.attn.qkv = HandLora(block.attn.qkv, 8)
    head, images, labels = nn.Linear(model.num_features, len(CLASSES)), data.images(), torch.full((data.batch,), 3)

    def loss() -> Tensor:
        return F.cross_entropy(head(model(images)), labels)

    trained = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    return Case("host", "lora, written by hand", loss, trained, nn.ModuleList([model, head]), list(model.blocks))


def cases(data: Data) -> Iterator[Case]:
    """Everything that is measured at one size, the two references first."""
    lora, hydra = resolve("methods", "lora"), resolve("methods", "hydra-lora")
    yield plain(data, "full fine-tuning, plain timm", train=True)
    yield plain(data, "linear probe, plain timm", train=False)
    yield from built_in(data)
    yield hosted(data, "lora, every linear layer", lora(at="linear"))
    for last in (6, 3, 1):
        yield hosted(data, f"lora, last {last} of 12 blocks", lora(blocks=f"last:{last}"), "last blocks")
    yield checkpointed(data, "lora, checkpointing", lora())
    yield checkpointed(data, "lora, every linear layer, checkpointing", lora(at="linear"))
    yield by_hand(data)
    for kind in ("cls", "seg", "det"):
        yield hosted(data, f"lora, {kind}", lora(), "heads", kind)
    three = Data(data.size, 12)
    for label, method in (("lora@shared", lora()), ("lora@task", lora(scope="task")), ("hydra-lora", hydra())):
        yield mixed(three, f"{label}, mixed batch", method, together=True)
        yield mixed(three, f"{label}, three passes", method, together=False)
    yield hosted(data, "hydra-lora, 4 heads, fused", hydra(heads=4), "hydra")
    yield hosted(data, "hydra-lora, 4 heads, one after another", LoopHydraLora(heads=4), "hydra")
