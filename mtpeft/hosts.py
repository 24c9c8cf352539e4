"""From Python without the command line: adapt a timm model in one line, give it heads, and load what was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn

from mtpeft.backbone.features import FeaturesInfo
from mtpeft.errors import MtpeftError, NotApplicable
from mtpeft.names import visible
from mtpeft.peft.allocation import Bound, limited_allocation
from mtpeft.peft.configured import as_methods
from mtpeft.peft.contents import as_data, take
from mtpeft.peft.host import Host
from mtpeft.peft.method import Method
from mtpeft.peft.store import HeadSpec, SavedMethod, read_adapter
from mtpeft.plugins import create, registry
from mtpeft.task import Head, Task


def adapt(
    backbone: nn.Module,
    method: str | Method | Sequence[tuple[str, Method]],
    tasks: Mapping[str, HeadSpec] | Sequence[str],
) -> Host:
    """Attach a method to a timm model, in one line.

    Args:
        backbone: any timm model; it is frozen in place, and `Host.detach` gives it back.
        method: ids with scopes, as on the command line (``"lora"``, ``"lora@shared+adaptformer@task"``), a configured
            method, or several with names.
        tasks: task names, or ``{name: mtpeft.head(type, classes)}`` to give each its head.

    Example::

        host = mtpeft.adapt(model, "lora", tasks={"pets": mtpeft.head("cls", ["cat", "dog"])})
        logits = host.predict(images, "pets")
    """
    host = Host(backbone, as_methods(method), list(tasks))
    with _detached_on_error(host):
        for name, spec in tasks.items() if isinstance(tasks, Mapping) else ():
            host.add_head(name, build_head(spec, host))
            host.bind_head(name, name)
    return host


def head(type: str, classes: Sequence[str], **settings: Any) -> HeadSpec:
    """Describe a task's head for `mtpeft.adapt`: ``head("cls", ["cat", "dog"])``.

    Args:
        settings: fields of the task type, such as ``head_config``.
    """
    return HeadSpec(type, tuple(classes), settings)


def build_head(spec: HeadSpec, host: Host, task: Task | None = None) -> Head:
    """The head of a task type on a host's features, or the classifier that a method puts in its place.

    Args:
        task: the configured task; built from the description where not given.

    Raises:
        UsageError: for an unknown task type, or settings it does not take.
        NotApplicable: for a method whose mechanism does not serve the task type.
    """
    settings = {name.removesuffix("_config"): value for name, value in spec.settings.items()}  # as recipes say it
    task = task or cast(Task, create("tasks", spec.type, settings, f"the head of type {spec.type}"))
    check_accepted(host.methods, spec.type)
    built = _classifier(host, spec.classes) if task.classifies else None
    made = cast(Head, built) if built is not None else task.head(host.info, spec.classes)
    made.spec = spec
    return made


def _classifier(host: Host, classes: Sequence[str]) -> nn.Module | None:
    info: FeaturesInfo = host.info
    made = (method.classifier(info, classes) for method in host.methods.values())
    return next((classifier for classifier in made if classifier is not None), None)


def check_accepted(methods: Mapping[str, Method], type: str) -> None:
    """
    Raises:
        NotApplicable: for a method whose mechanism does not serve a task type.
    """
    for name, method in methods.items():
        accepts = method.declares.accepts
        if accepts and type not in accepts:
            raise NotApplicable(
                f"{name} serves tasks of type {' and '.join(accepts)}, and not {type}",
                hint="leave the task out, or take another method",
            )


def load(directory: str | Path, backbone: nn.Module, methods: Mapping[str, Method] | None = None) -> Host:
    """The host that was saved in ``directory``, on its backbone.

    The folder is data: nothing in it is imported or called. Methods and task types come from what is installed, by
    their registered ids. A head that `mtpeft.head` did not describe cannot be built from the folder: add it, then call
    `Host.load`.

    Args:
        methods: configured methods by name, for classes that no plugin registers.

    Raises:
        MtpeftError: for another backbone, a method that is not installed, or a damaged file.
    """
    contents = read_adapter(Path(directory))
    known, where = methods or {}, f'"{directory}"'
    with limited_allocation(Bound.of(contents, backbone), where), as_data(where):
        made = [(saved.name, known.get(saved.name) or registered(saved, directory)) for saved in contents.methods]
        host = Host(backbone, made, contents.tasks, image_size=contents.image_size)
        with _detached_on_error(host):
            for name, spec in contents.heads.items():
                if spec.type:
                    host.add_head(name, build_head(spec, host), group=name in contents.groups)
            take(host, contents)
    return host


def registered(saved: SavedMethod, where: str | Path) -> Method:
    """The configured method that was saved, from the registry and nowhere else.

    Raises:
        MtpeftError: if it is not installed, or does not take the saved settings.
    """
    if saved.id is None:
        raise MtpeftError(
            f'"{where}" was saved with a method "{saved.name}" that no plugin registers',
            hint=f'bring it: mtpeft.load(directory, backbone, methods={{"{saved.name}": your_method}})',
        )
    if saved.id not in registry("methods"):
        package = visible(f"{saved.package} {saved.version}".strip())
        raise MtpeftError(
            f'"{where}" needs the method "{visible(saved.id)}" of {package}, which is not installed',
            hint=f"install the plugin that brings it: pip install {visible(saved.package)}",
        )
    return cast(Method, create("methods", saved.id, saved.settings, f"methods.{saved.name}"))


@contextmanager
def _detached_on_error(host: Host) -> Iterator[None]:
    """Whoever gets no host gets the backbone back as it was."""
    try:
        yield
    except Exception:
        host.detach()
        raise
