"""A run: what is trained, on what and when; its tasks are met one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtpeft.addresses import ParameterKey
from mtpeft.backbone import Backbone
from mtpeft.balancing import Balancer
from mtpeft.config import Config
from mtpeft.data.opened import OpenedData
from mtpeft.data.shared_images import together
from mtpeft.errors import MtpeftError
from mtpeft.evaluation import ResultMatrix
from mtpeft.hosts import build_head
from mtpeft.keyed_random import key
from mtpeft.peft.contents import take
from mtpeft.peft.host import Host
from mtpeft.peft.store import HeadSpec, read_adapter
from mtpeft.schedule import Begin, End, Evaluate, Event, Schedule, TaskSize
from mtpeft.task import Dataset, Task
from mtpeft.training.optimizer import Optimizer


@dataclass
class Run:
    """What is trained, on what, and when.

    Attributes:
        folder: where everything is kept; need not exist yet.
        tasks: every task, those inherited from another run included.
        data: their splits.
        inherited: the tasks that another run trained and this one does not.
        matrix: the results so far, of the runs it was started from too.
        first_stage: number of stages that other runs made before.
        caveats: where a score means nothing, for the summary.
        remarks: what the data holds that is not read.
    """

    config: Config
    folder: Path
    device: torch.device
    backbone: Backbone
    backbone_parameters: int
    host: Host
    tasks: dict[str, Task]
    data: OpenedData
    schedule: Schedule
    balancer: Balancer
    optimizer: Optimizer
    inherited: tuple[str, ...] = ()
    first_stage: int = 0
    matrix: ResultMatrix = field(default_factory=lambda: ResultMatrix({}, []))
    caveats: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks that this run's schedule trains."""
        return tuple(name for name in self.tasks if name not in self.inherited)

    def dataset(self, name: str, split: str) -> Dataset:
        """`OpenedData.dataset`."""
        return self.data.dataset(name, split)

    def events(self) -> Iterator[Event]:
        """The schedule of this run's own tasks, behind the stages of the runs before, whose tasks are evaluated too."""
        sizes = {n: TaskSize(self.images_of(n), self.tasks[n].batch_size) for n in self.trained}
        planned: Iterable[Event | None] = self.schedule.events(sizes, self.config.seed)
        for event, following in pairwise(chain(planned, [None])):
            if event is None or self._repeated(event, following):
                continue
            if isinstance(event, Begin | End | Evaluate):
                event = replace(event, stage=event.stage + self.first_stage)
            if isinstance(event, Evaluate) and (event.final or event.probe):
                event = replace(event, tasks=(*self.inherited, *event.tasks), split=self.config.evaluate_on)
            if not isinstance(event, Evaluate) or event.split in self.data.splits:
                yield event

    def images_of(self, name: str) -> int:
        """The images that a task trains on; with those of the tasks that share them in its stage."""
        stage = next(names for names in self.schedule.stage_tasks(list(self.trained)) if name in names)
        sharing = next(names for names in together(self.tasks, stage).values() if name in names)
        return len(self.data.source(sharing, "train"))

    def _repeated(self, event: Event, following: Event | None) -> bool:
        """Whether an evaluation decides nothing, and what comes after the stage's end says the same."""
        said_again = self.config.evaluate_on == "val" and isinstance(following, End)
        return isinstance(event, Evaluate) and not event.probe and said_again and self.config.output.keep == "last"

    def stages(self) -> int:
        """Number of stages, those of the runs before included."""
        return self.first_stage + len(self.schedule.stage_tasks(list(self.trained)))

    def learning_rate(self, parameter: str) -> float:
        """The peak rate of a parameter of `Host.trainable`: that of its method, or of heads."""
        named, rates = ParameterKey.parse(parameter), self.learning_rates()
        if named.kind != "part":
            return float(rates["heads"])
        tensor = named.tensor.split("/", 2)[-1]
        return rates["methods"][named.method] * self.host.methods[named.method].rate_of(tensor)

    def learning_rates(self) -> dict[str, Any]:
        """Peak rates, ``{"methods": {label: rate}, "heads": rate}``: the configuration's, else the methods' own.

        Heads, and what a balancer learns, start from nothing: they follow the fastest method, and are no slower than
        2e-3 beside methods that move pre-trained weights with care.
        """
        settings = self.config.optimizer
        own = {label: settings.lr or method.declares.learning_rate for label, method in self.host.methods.items()}
        return {"methods": own, "heads": settings.head_lr or settings.lr or max(2e-3, *own.values())}

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass's precision."""
        if self.config.optimizer.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def about(self) -> dict[str, Any]:
        """What to keep beside the trained tensors, for who reads them without this run."""
        tasks = {name: {"type": c.type, "settings": c.settings} for name, c in self.config.tasks.items()}
        return {"tasks_config": tasks, "image": asdict(self.backbone.image)}

    def loss(self, name: str, outputs: Any, targets: list[dict[str, Any]]) -> Tensor:
        """A task's loss on its head's outputs: the sum of its parts, before its weight."""
        head = self.host.head_of(name)
        return torch.stack(list(self.tasks[name].loss(head, outputs, targets).values())).sum()

    def signed(self, name: str, value: float) -> float:
        """A task's score such that higher is better."""
        return value if self.tasks[name].higher_is_better else -value

    def head_name(self, name: str) -> str:
        """The head that a task uses: its group's, or its own."""
        return self.tasks[name].group or name

    def meet(self, name: str) -> None:
        """Give a task its own parts and its head, or let its group's head grow; a task met before stays as it is.

        What is drawn depends on the seed and the names alone, not on what came before.
        """
        head, classes = self.head_name(name), self.dataset(name, "train").classes
        if name not in self.host.tasks:
            with seeded(self.config.seed, name):
                self.host.add_task(name)
        with seeded(self.config.seed, f"head of {name}"):
            if head not in self.host.heads:
                self.add_head(name, head, classes)
            else:
                new = [label for label in classes if label not in self.host.heads[head].classes]
                self.host.heads[head].extend(new, self.host.info)
        self.host.bind_head(name, head)
        self.host.to(self.device)

    def add_head(self, name: str, head: str, classes: Sequence[str]) -> None:
        """A head for a task: its type's, or the classifier that a method puts in its place."""
        task = self.tasks[name]
        spec = HeadSpec(
            self.config.tasks[name].type, tuple(classes), {"head": task.head_config} if task.head_config else {}
        )
        self.host.add_head(head, build_head(spec, self.host, task), group=bool(task.group))

    def restore(self, folder: Path) -> None:
        """Take parts, heads, what routines keep and who is frozen from an ``adapter/`` folder.

        Raises:
            MtpeftError: if it belongs to another backbone or other methods, or is damaged.
        """
        contents = read_adapter(folder)
        for name in contents.tasks:
            if name not in self.tasks:
                raise MtpeftError(
                    f'"{folder}" holds a task "{name}" that this run does not have', hint="take its own run"
                )
            head = self.head_name(name)
            if name not in self.host.tasks:
                self.host.add_task(name)
            if head in contents.heads and head not in self.host.heads:
                self.add_head(name, head, contents.heads[head].classes)
            if head in self.host.heads:
                self.host.bind_head(name, head)
        take(self.host, contents)
        self.host.to(self.device)


@contextmanager
def seeded(seed: int, what: str) -> Iterator[None]:
    """Draw from a generator of its own inside; the global one is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, what, 0, 0))
        yield
