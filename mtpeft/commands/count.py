"""``mtpeft count METHOD``: what a method trains on a backbone, by building it there without weights or data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtpeft.commands.output import print_json, print_table
from mtpeft.config import Config, load_methods

if TYPE_CHECKING:
    from mtpeft.backbone import Backbone
    from mtpeft.peft.host import Host


def run(method: str, *, backbone: str, tasks: int, settings: Sequence[str], json: bool) -> None:
    """Print trained parameters, their share of the backbone and their size on disk.

    Raises:
        UsageError: for an unknown method, setting or backbone.
        NotApplicable: where the method makes no sense on the backbone.
    """
    counted = count(method, backbone, tasks, settings)
    if json:
        print_json(counted)
        return
    print(f"{method} on {counted['backbone']}, tasks: {tasks}\n")
    print_table(("number", "what"), in_words(counted))


def in_words(counted: dict[str, Any]) -> list[dict[str, str]]:
    """Rows for people: both ways to count, parts alone and parts with heads; the latter where classes are known."""
    rows = [
        (f"{counted['parts']:,}", "trained parameters, heads apart"),
        (f"{counted['shared']:,}", "of them shared by all tasks"),
        (f"{counted['per_task']:,}", "of them owned by each task"),
        (f"{counted['percent']:.3f} %", "of the backbone's parameters"),
        (f"{counted['bytes']:,}", "bytes on disk, heads apart"),
    ]
    if counted["classes"]:
        with_heads = counted["parts"] + counted["head"]
        rows.append((f"{with_heads:,}", f"with a linear head of {counted['classes']:,} classes for each task"))
    width = max(len(number) for number, _ in rows)
    return [{"number": number.rjust(width), "what": what} for number, what in rows]


def count(method: str, backbone: str, tasks: int = 1, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Counts as JSON: ``parts`` are the trained parameters without heads, ``bytes`` what they take on disk in fp32.

    ``head`` is what linear heads for as many classes as the backbone's pre-training had would add.
    """
    config = load_methods(method, settings)
    names = [f"task-{number}" for number in range(1, tasks + 1)]
    try:
        made, size, host = _attach(config, backbone, names, "meta")
    except (NotImplementedError, RuntimeError):  # a method that looks at weights needs weights that are there
        made, size, host = _attach(config, backbone, names, "cpu")
    counts = host.count()
    classes = (getattr(made.module, "pretrained_cfg", None) or {}).get("num_classes", 0)
    return {
        "method": method,
        "backbone": made.name,
        "parts": counts.parts,
        "head": tasks * (host.info.pooled + 1) * classes,
        "percent": 100 * counts.parts / size,
        "bytes": 4 * counts.parts + counts.buffers,
        "shared": counts.shared,
        "per_task": max(counts.per_task.values(), default=0),
        "classes": classes,
    }


def _attach(config: Config, backbone: str, tasks: list[str], device: str) -> tuple[Backbone, int, Host]:
    """The backbone, its number of parameters, and a host on it."""
    import torch

    from mtpeft.backbone import create_backbone
    from mtpeft.peft.configured import build_methods
    from mtpeft.peft.host import Host

    with torch.device(device):
        made = create_backbone(backbone, pretrained=False)
        size = sum(parameter.numel() for parameter in made.module.parameters())
        return made, size, Host(made.module, build_methods(config), tasks=tasks)
