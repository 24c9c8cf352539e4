"""A run: configuration, backbone, host, tasks and schedule, built together and found again in a run folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from mtpeft import backbone as backbones
from mtpeft.addresses import ParameterKey
from mtpeft.backbone.features import Features
from mtpeft.balancing import Balancer
from mtpeft.config import Config
from mtpeft.config import load as load_config
from mtpeft.data.combined_datasets import JoinedSplits, Subsample
from mtpeft.data.decoded_cache import Decoded, place
from mtpeft.data.label_checks import label_errors
from mtpeft.errors import DataError, MtpeftError, UsageError, did_you_mean
from mtpeft.evaluation import ResultMatrix, TaskRecord
from mtpeft.files import read_json
from mtpeft.peft.configured import build_methods
from mtpeft.peft.heads import HeadSpec
from mtpeft.peft.host import Host
from mtpeft.peft.method import Method
from mtpeft.plugins import create
from mtpeft.recipe import RANDOM_WEIGHTS
from mtpeft.schedule import Begin, End, Evaluate, Event, Schedule, TaskSize, key
from mtpeft.task import SPLITS, Dataset, Head, Split, Task
from mtpeft.training.checkpoint import current_state

if TYPE_CHECKING:
    from mtpeft.backbone import Backbone

_NO_MATTER = {setting.name for setting in fields(Task)} - {"data"}
"""Settings of every task that do not change its samples."""


@dataclass
class Run:
    """What is trained, on what, and when.

    Attributes:
        folder: where everything is kept; need not exist yet.
        tasks: every task, those inherited from another run included.
        inherited: the tasks that another run trained and this one does not.
        matrix: the results so far, of the runs it was started from too.
        first_stage: number of stages that other runs made before.
    """

    config: Config
    folder: Path
    device: torch.device
    backbone: Backbone
    backbone_parameters: int
    host: Host
    tasks: dict[str, Task]
    schedule: Schedule
    balancer: Balancer
    inherited: tuple[str, ...] = ()
    first_stage: int = 0
    matrix: ResultMatrix = field(default_factory=lambda: ResultMatrix({}, []))
    _data: dict[tuple[str, str], Dataset] = field(default_factory=dict, repr=False)

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks that this run's schedule trains."""
        return tuple(name for name in self.tasks if name not in self.inherited)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that this run may see: those it trains on as one, and those that are apart from it."""
        closed = {"val"} & set(self.config.train_on) | {"test"} - {self.config.evaluate_on}
        return tuple(split for split in SPLITS if split not in closed)

    @property
    def data_seed(self) -> int:
        return self.config.seed if self.config.data_seed is None else self.config.data_seed

    def dataset(self, name: str, split: str) -> Dataset:
        """The samples of a task's split (one of `splits`), opened once; all that is trained on is ``train``.

        Raises:
            DataError: if it cannot be used, or holds no sample.
            UsageError: for a split that this run must not see.
        """
        if split not in self.splits:
            said = f"evaluate_on = {self.config.evaluate_on}, train_on = {', '.join(self.config.train_on)}"
            raise UsageError(f"this run does not open {split} ({said})", hint=f"it has {', '.join(self.splits)}")
        if (name, split) not in self._data:
            opened = [self._open(name, part) for part in (self.config.train_on if split == "train" else (split,))]
            found = opened[0] if len(opened) == 1 else JoinedSplits(opened)
            most = self.tasks[name].samples if split == "train" else 0
            self._data[name, split] = Subsample(found, most, self.data_seed) if 0 < most < len(found) else found
        return self._data[name, split]

    def _open(self, name: str, split: str) -> Dataset:
        found = self.tasks[name].dataset(cast(Split, split), seed=self.data_seed)
        if len(found) == 0:
            data = self.tasks[name].data or "the embedded data"
            raise DataError(f'task "{name}" has no {split} samples in {data}', hint="look at it: mtpeft data PATH")
        return Decoded(found, self._kept_in(name, split, found)) if self.config.cache else found

    def _kept_in(self, name: str, split: str, data: Dataset) -> Path:
        own = {key: value for key, value in vars(self.tasks[name]).items() if key not in _NO_MATTER}
        about = {"type": self.config.tasks[name].type, "split": split, "seed": self.data_seed, **own}
        return place(Path(self.config.cache or ""), about, data)

    def events(self) -> Iterator[Event]:
        """The schedule of this run's own tasks, behind the stages of the runs before, whose tasks are evaluated too."""
        sizes = {n: TaskSize(len(self.dataset(n, "train")), self.tasks[n].batch_size) for n in self.trained}
        planned: Iterable[Event | None] = self.schedule.events(sizes, self.config.seed)
        for event, following in pairwise(chain(planned, [None])):
            if event is None or self._repeated(event, following):
                continue
            if isinstance(event, Begin | End | Evaluate):
                event = replace(event, stage=event.stage + self.first_stage)
            if isinstance(event, Evaluate) and event.final:
                event = replace(event, tasks=(*self.inherited, *event.tasks), split=self.config.evaluate_on)
            if not isinstance(event, Evaluate) or event.split in self.splits:
                yield event

    def _repeated(self, event: Event, following: Event | None) -> bool:
        """Whether an evaluation decides nothing, and what comes after the stage's end says the same."""
        said_again = self.config.evaluate_on == "val" and isinstance(following, End)
        return isinstance(event, Evaluate) and said_again and self.config.output.keep == "last"

    def stages(self) -> int:
        """Number of stages, those of the runs before included."""
        return self.first_stage + len(self.schedule.stage_tasks(list(self.trained)))

    def learning_rate(self, parameter: str) -> float:
        """The peak rate of a parameter of `Host.trainable`: that of its method, or of heads."""
        named, rates = ParameterKey.parse(parameter), self.learning_rates()
        return rates["methods"][named.method] if named.kind == "part" else rates["heads"]

    def learning_rates(self) -> dict[str, Any]:
        """Peak rates, ``{"methods": {label: rate}, "heads": rate}``: the configuration's, else the methods' own.

        Heads, and what a balancer learns, start from nothing: they follow the fastest method, and are no slower than
        2e-3 beside methods that move pre-trained weights with care.
        """
        settings = self.config.optimizer
        own = {label: settings.lr or method.learning_rate for label, method in self.host.methods.items()}
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

    def loss(self, name: str, features: Features, targets: list[dict[str, Any]]) -> Tensor:
        """A task's loss: the sum of its parts, before its weight."""
        head = self.host.head_of(name)
        return torch.stack(list(self.tasks[name].loss(head, head(features), targets).values())).sum()

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
                self.host.add_head(head, self.new_head(name, classes))
            else:
                new = [label for label in classes if label not in self.host.heads[head].classes]
                self.host.heads[head].extend(new)
        self.host.bind_head(name, head)
        self.host.to(self.device)

    def new_head(self, name: str, classes: Sequence[str]) -> Head:
        """A task's head, or the classifier that a method puts in its place."""
        task = self.tasks[name]
        own = [method.classifier(self.host.info, classes) for method in self.host.methods.values() if task.classifies]
        head = next((head for head in own if head is not None), None) or task.head(self.host.info, classes)
        spec = HeadSpec(self.config.tasks[name].type, tuple(classes), {"head_config": task.head_config})
        head.spec = spec
        return head

    def restore(self, folder: Path) -> None:
        """Take parts and heads from an ``adapter/`` folder.

        Raises:
            MtpeftError: if it belongs to another backbone or other methods, or is damaged.
        """
        saved = read_json(folder / "adapter.json")
        for name in saved["tasks"]:
            if name not in self.tasks:
                raise MtpeftError(
                    f'"{folder}" holds a task "{name}" that this run does not have', hint="take its own run"
                )
            head = self.head_name(name)
            if name not in self.host.tasks:
                self.host.add_task(name)
            if head not in self.host.heads:
                self.host.add_head(head, self.new_head(name, saved["heads"][head]["classes"]))
            self.host.bind_head(name, head)
        self.host.load(folder)
        self.host.to(self.device)


@contextmanager
def seeded(seed: int, what: str) -> Iterator[None]:
    """Draw from a generator of its own inside; the global one is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, what, 0, 0))
        yield


def choose_device(name: str) -> torch.device:
    """
    Raises:
        UsageError: for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if int(number or 0) >= there.get(kind, 1):
        raise UsageError(f'device = "{name}", but this machine has no such device', hint="leave it out, or say cpu")
    return torch.device(name)


def build_tasks(config: Config) -> dict[str, Task]:
    """The tasks of a configuration by name."""
    return {
        name: create("tasks", task.type, task.settings, f"tasks.{name}", config.origin)
        for name, task in config.tasks.items()
    }


def setup(config: Config, *, inherited: tuple[str, ...] = (), first_stage: int = 0, check_data: bool = True) -> Run:
    """Build everything that ``config`` names; what is wrong with it is found here, before anything is trained.

    Args:
        inherited: tasks that another run trained and this one does not.
        first_stage: number of stages that other runs made before.
        check_data: open every split of every task, and look at what its labels are.
    """
    tasks, methods = build_tasks(config), build_methods(config)
    schedule = create("schedules", config.schedule.name, config.schedule.settings, "schedule", config.origin)
    balancer = create("balancers", config.balance.name, config.balance.settings, "balance", config.origin)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    backbone = backbones.create(
        config.backbone,
        weights=None if config.weights == RANDOM_WEIGHTS else config.weights,
        pretrained=config.weights != RANDOM_WEIGHTS,
        image_size=config.image_size,
        options=config.backbone_options,
        normalization=config.normalization,
    )
    parameters = sum(parameter.numel() for parameter in backbone.module.parameters())
    host = Host(backbone.module, methods, image_size=backbone.image.size).to(device)
    host.checkpointing(config.optimizer.checkpointing)
    check_groups(tasks, host)
    folder = Path(config.output.dir)
    run = Run(config, folder, device, backbone, parameters, host, tasks, schedule, balancer, inherited, first_stage)
    run.matrix = ResultMatrix(task_records(run), schedule.stage_tasks(list(run.trained)))
    if check_data:
        check_labels(run)
    return run


def check_labels(run: Run) -> None:
    """Open every split that the run may see; readers check what they read, and the counts of classes are checked here.

    Raises:
        DataError: for data that a reader refuses, a split without labels, or a class that is never shown in training.
    """
    for name, task in run.tasks.items():
        splits = {split: run.dataset(name, split) for split in run.splits}
        if not task.data:
            continue  # the embedded data is as it should be
        manifests = {split: data.manifest() for split, data in splits.items()}
        shown = {split: about["histogram"] for split, about in manifests.items() if "histogram" in about}
        for error in label_errors(f'task "{name}"', shown, allow_missing=task.missing_classes == "allow"):
            raise error


def check_groups(tasks: Mapping[str, Task], host: Host) -> None:
    """Testing tells the tasks of a group apart by their head alone.

    Raises:
        UsageError: for a group with a method whose parts need to know the task.
    """
    grouped = [name for name, task in tasks.items() if task.group]
    for label, method in host.methods.items():
        lost = method.owners(None, grouped) == () and type(method).encode is Method.encode
        if grouped and (method.needs_task_id or lost):
            message = f'task "{grouped[0]}" is in a group, and {label} must know the task of each test image'
            raise UsageError(message, hint=f"take scope = shared for {label}, or leave group out")


def task_records(run: Run) -> dict[str, TaskRecord]:
    """What the result matrix must know of each task."""
    return {
        name: TaskRecord(run.config.tasks[name].type, task.metric_name, task.higher_is_better, None, task.unit)
        for name, task in run.tasks.items()
    }


def open_run(
    folder: Path, *, best: str = "", device: str = "auto", evaluate_on: Literal["val", "test"] | None = None
) -> Run:
    """A run again, as it was left: to evaluate, predict or export. Its data need not be there to predict.

    Args:
        folder: a run folder.
        best: a task whose best weights on validation are wanted instead of the last.
        device: where to run it, which need not be where it was trained.
        evaluate_on: ``test`` opens the test split of a run that was trained for a choice; None leaves it as it was.

    Raises:
        MtpeftError: if there is no such run or its files are damaged.
    """
    adapter = find_adapter(folder, best)
    config = load_config(folder / "config.toml")
    output = replace(config.output, dir=str(folder))
    config = replace(config, output=output, device=device, evaluate_on=evaluate_on or config.evaluate_on)
    run = setup(config, check_data=False)
    run.restore(adapter)
    run.host.eval()
    return run


def find_adapter(folder: Path, best: str = "") -> Path:
    """The folder with a run's trained tensors: finished, or the newest saved state of one that is not.

    Raises:
        MtpeftError: if it is no run, or nothing was saved in it.
    """
    if not (folder / "config.toml").exists():
        raise MtpeftError(f'"{folder}" is no run', hint="give the folder that mtpeft train wrote")
    if best:
        if not (folder / "best" / best).exists():
            known = [p.name for p in (folder / "best").glob("*")]
            raise MtpeftError(f'"{folder}" has no best weights for "{best}"', hint=did_you_mean(best, known))
        return folder / "best" / best
    if (folder / "adapter").exists():
        return folder / "adapter"
    return current_state(folder / "state") / "adapter"
