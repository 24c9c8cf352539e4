"""`results/step_costs.md` from what `step_costs.py` measured."""

from __future__ import annotations

LIMITS = {"lora, seg": 1.2, "lora, det": 1.4}


def report(found: dict) -> str:
    """The page: one section for each size, then the layer."""
    parts = [
        "# What one training step costs\n",
        "Forward, backward and AdamW update on ViT-Ti/16 (12 blocks, random weights), one thread, CPU time, least\n"
        f"of {found['rounds']} interleaved rounds, torch {found['torch']}. `time`: plain full fine-tuning of the\n"
        "bare timm model is 1 (by counting products, parts in every block cost .7, in the last 3 of 12 blocks .42, a\n"
        "side network .37, a linear probe .33). `kept`: MiB that autograd keeps for the backward pass, each storage\n"
        "once, without parameters. `blocks`: those that a gradient reaches; before them nothing is kept and no\n"
        "gradient computed.\n"
        f"Made by `python benchmarks/step_costs.py --rounds {found['rounds']}`.\n",
    ]
    for size in found["sizes"]:
        parts += _size(size)
    parts.append(
        "## HydraLoRA on one linear layer\n\n192 to 768, 24 x 65 tokens, 4 heads of rank 4; frozen layer = 1.\n"
    )
    parts.append(table(["way", "time"], [[name, f"{time:.2f}"] for name, time in found["hydra_layer"].items()]))
    return "\n".join(parts)


def _size(size: dict) -> list[str]:
    cases = size["cases"]
    groups = {group: [c for c in cases if c["group"] == group] for group in dict.fromkeys(c["group"] for c in cases)}
    steps = [c for name in ("reference", "method", "last blocks", "memory", "host", "hydra") for c in groups[name]]
    full, probe = groups["reference"]
    rows = [
        [
            c["name"],
            f"{c['seconds'] / full['seconds']:.2f}",
            f"{c['seconds'] / probe['seconds']:.2f}",
            *_memory(c, full),
        ]
        for c in steps
    ]
    heads, mixed = groups["heads"], groups["mixed"]
    return [
        f"## {size['size']} px, batches of {size['batch']}\n",
        f"Plain full fine-tuning: {1000 * full['seconds']:.0f} ms a step.\n",
        table(["step", "time", "probe = 1", "kept", "of full", "blocks", "trained"], rows),
        "Heads, with LoRA on q and v; the classification step is 1:\n",
        table(["step", "time", "limit", "kept", "trained"], [_head(c, heads[0]) for c in heads]),
        "Three tasks, 4 images of each, in one mixed batch or one pass for each task; three passes are 1:\n",
        table(["method", "mixed batch"], [_mixed(*pair) for pair in zip(mixed[::2], mixed[1::2], strict=True)]),
    ]


def _memory(case: dict, full: dict) -> list[str]:
    kept = case["kept_bytes"]
    return [f"{kept / 2**20:.1f}", f"{kept / full['kept_bytes']:.2f}", str(case["blocks"]), f"{case['trained']:,}"]


def _head(case: dict, classification: dict) -> list[str]:
    limit = LIMITS.get(case["name"])
    relative = f"{case['seconds'] / classification['seconds']:.2f}"
    return [case["name"], relative, str(limit or ""), f"{case['kept_bytes'] / 2**20:.1f}", f"{case['trained']:,}"]


def _mixed(together: dict, apart: dict) -> list[str]:
    return [together["name"].removesuffix(", mixed batch"), f"{together['seconds'] / apart['seconds']:.2f}"]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
