"""What one training step costs: time, and bytes kept for the backward pass, beside plain full fine-tuning.

    python benchmarks/step_costs.py --rounds 15

Every step is forward, backward and update on ViT-Ti/16 with AdamW. All steps of a size take turns, and the least CPU
time of one thread counts, so what else the machine does matters little. Kept bytes are those of every storage that
autograd saves, counted once, parameters and buffers left out. Writes `results/step_costs.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

import torch
from step_cases import Case, Data, cases
from step_table import report
from step_written import LayerSteps
from torch import Tensor, nn

RESULTS = Path(__file__).with_name("results")
SIZES = (Data(128, 8), Data(224, 4))


def interleaved(steps: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The least CPU seconds of each step, all of them taking turns; a first round is not counted."""
    best = [float("inf")] * len(steps)
    for turn in range(rounds + 1):
        for index, step in enumerate(steps):
            started = process_time()
            step()
            spent = process_time() - started
            best[index] = min(best[index], spent) if turn else best[index]
    return best


def kept_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of the distinct storages that autograd saves, without those of parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    held = {}  # the storages stay alive while we count, or one address could stand for two

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in held.values())


def reached_blocks(case: Case) -> int:
    """How many blocks a gradient reaches, by their outputs; blocks whose outputs need none keep nothing either."""
    needed: list[bool] = []
    hooks = [b.register_forward_hook(lambda module, args, y: needed.append(y.requires_grad)) for b in case.blocks]
    case.loss()
    for hook in hooks:
        hook.remove()
    return sum(needed[: len(case.blocks)])


def measure(data: Data, rounds: int) -> list[dict]:
    """One record for each case of a size."""
    found = list(cases(data))
    seconds = interleaved([case.step for case in found], rounds)
    records = []
    for case, time in zip(found, seconds, strict=True):
        blocks = reached_blocks(case)
        if case.group == "last blocks" and f"last {blocks} of" not in case.name:
            raise SystemExit(f"{case.name}: a gradient reaches {blocks} blocks")
        trained = sum(p.numel() for p in case.trained)
        kept = kept_bytes(case.loss, case.model)
        records.append(
            {"group": case.group, "name": case.name, "seconds": time, "kept_bytes": kept, "trained": trained}
            | {"blocks": blocks}
        )
    return records


def measure_layer(rounds: int) -> dict[str, float]:
    """HydraLoRA with 4 heads on one linear layer of 192 to 768, 24 x 65 tokens, relative to the frozen layer."""
    layer = LayerSteps(192, 768, 24 * 65)
    ways = {
        "frozen": layer.frozen,
        "heads one after another, A for each": lambda: layer.loop(once=False),
        "heads one after another, A once": lambda: layer.loop(once=True),
        "fused": layer.fused,
    }
    steps = [lambda way=way: way().backward(layer.gradient) for way in ways.values()]
    seconds = interleaved(steps, 10 * rounds)
    return {name: time / seconds[0] for name, time in zip(ways, seconds, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "rounds": options.rounds,
        "torch": torch.__version__,
        "sizes": [{"size": d.size, "batch": d.batch, "cases": measure(d, options.rounds)} for d in SIZES],
        "hydra_layer": measure_layer(options.rounds),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "step_costs.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "step_costs.md").write_text(report(found))


if __name__ == "__main__":
    main()
