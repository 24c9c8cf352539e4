"""From Python without the command line: adapt a timm model in one line, and load what was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from mtpeft.peft import store
from mtpeft.peft.configured import as_methods
from mtpeft.peft.heads import HeadSpec
from mtpeft.peft.host import Host
from mtpeft.peft.method import Method


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
            host.add_head(name, spec.build(host.info))
            host.bind_head(name, name)
    return host


def load(directory: str | Path, backbone: nn.Module) -> Host:
    """The host that was saved in ``directory``, on its backbone.

    A head that `mtpeft.head` did not describe cannot be built from the folder: add it, then call `Host.load`.

    Raises:
        MtpeftError: for another backbone, a method that is not installed, or a damaged file.
    """
    description = store.read_description(Path(directory))
    methods = [(m["name"], store.build_method(m)) for m in description["methods"]]
    host = Host(backbone, methods, description["tasks"], image_size=tuple(description["image_size"]))
    with _detached_on_error(host):
        for name, head in description["heads"].items():
            if head["type"]:
                host.add_head(name, HeadSpec(head["type"], tuple(head["classes"]), head["settings"]).build(host.info))
        host.load(directory)
    return host


@contextmanager
def _detached_on_error(host: Host) -> Iterator[None]:
    """Whoever gets no host gets the backbone back as it was."""
    try:
        yield
    except Exception:
        host.detach()
        raise
