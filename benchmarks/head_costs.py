"""What each head costs, in training and in use, beside classification on the same backbone.

    python benchmarks/head_costs.py --rounds 6

ViT-Ti/16 (random weights) at 160 px with LoRA on q and v, batches of 8. A step is forward, backward and update; use is
the forward pass and decoding, without gradient. Everything takes turns, and the least CPU time of one thread counts.
Writes `results/head_costs.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step_cases import Case, Data, hosted
from step_costs import interleaved, kept_bytes
from step_table import table

from mtpeft.plugins import resolve
from mtpeft_tasks.names import heads_for

RESULTS = Path(__file__).with_name("results")
DATA = Data(160, 8)
INTRODUCTION = """\
# What each head costs

ViT-Ti/16 (random weights) at {size} px, LoRA on q and v, batches of {batch}, 10 classes, three boxes an image; one
thread, CPU time, least of {rounds} interleaved rounds, torch {torch}. `step`: forward, backward and AdamW
update; linear classification is 1 ({step:.0f} ms). `use`: forward and decoding without gradient; linear
classification is 1 ({use:.0f} ms). The heads are untrained, so detectors have as little (FCOS, RetinaNet) or as much
(Faster R-CNN) to sort out as can be. `kept`: MiB that autograd keeps. All heads have their default settings, which
follow the image. Made by `python benchmarks/head_costs.py --rounds {rounds}`.
"""
HEADS = {"cls": sorted(heads_for("cls"), reverse=True), "det": heads_for("det"), "seg": heads_for("pixels", "seg")}


@dataclass
class HeadCase:
    """One head behind the host: a training step, and a use."""

    kind: str
    step: Case
    use: Callable[[], Any]


def head_cases() -> Iterator[HeadCase]:
    """Every head with its default settings, linear classification first."""
    lora = resolve("methods", "lora")
    for kind, heads in HEADS.items():
        for name in heads:
            settings = {"head_config": {"name": name}}
            case = hosted(DATA, name, lora(), "heads", kind, **settings)
            yield HeadCase(kind, case, _use(case, kind, settings))


def _use(case: Case, kind: str, settings: dict[str, Any]) -> Callable[[], Any]:
    task, images, targets = resolve("tasks", kind)(**settings), DATA.images(), DATA.targets(kind)

    @torch.no_grad()
    def use() -> Any:
        host = case.model.eval()
        found = task.decode(host.head_of("one"), host.predict(images, "one"), targets)
        host.train()
        return found

    return use


def measure(rounds: int) -> list[dict[str, Any]]:
    """One record for each head."""
    found = list(head_cases())
    seconds = interleaved([call for case in found for call in (case.step.step, case.use)], rounds)
    return [
        {
            "type": case.kind,
            "head": case.step.name,
            "step_seconds": step,
            "use_seconds": use,
            "kept_bytes": kept_bytes(case.step.loss, case.step.model),
            "parameters": sum(p.numel() for p in case.step.model.head_of("one").parameters()),
        }
        for case, step, use in zip(found, seconds[::2], seconds[1::2], strict=True)
    ]


def report(found: dict[str, Any]) -> str:
    """The page."""
    first = found["heads"][0]
    step, use = first["step_seconds"], first["use_seconds"]
    text = INTRODUCTION.format(**found, step=1000 * step, use=1000 * use)
    return f"{text}\n" + table(
        ["head", "step", "use", "kept", "parameters"],
        [
            [
                f"{case['type']}, {case['head']}",
                f"{case['step_seconds'] / step:.2f}",
                f"{case['use_seconds'] / use:.2f}",
                f"{case['kept_bytes'] / 2**20:.1f}",
                f"{case['parameters']:,}",
            ]
            for case in found["heads"]
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"rounds": options.rounds, "torch": torch.__version__, "size": DATA.size, "batch": DATA.batch}
    found["heads"] = measure(options.rounds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "head_costs.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "head_costs.md").write_text(report(found))


if __name__ == "__main__":
    main()
