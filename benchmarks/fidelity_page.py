"""`results/fidelity.md`: every method beside a reference implementation, from the files in `results/fidelity/`.

python benchmarks/fidelity_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtpeft.plugins import registry

RESULTS = Path(__file__).with_name("results")
INTRODUCTION = """# Fidelity

Ours beside a reference implementation: the same weights copied in, the same input, the largest absolute difference of
outputs and of gradients. Where none was run the reason stands, and what holds the method instead is a test of its
equations in `tests/plugins/`. Comparisons with HF PEFT are tests themselves (`tests/plugins/test_hf_*.py`, run where
`peft` is installed). Written by `python benchmarks/fidelity_page.py` from the files in `fidelity/`.
"""


def record(method: str) -> dict[str, Any]:
    """What is known of a method's fidelity."""
    path = RESULTS / "fidelity" / f"{method}.json"
    if not path.is_file():
        return {"method": method, "reference": None, "why": "not compared yet"}
    return json.loads(path.read_text())


def row(found: dict[str, Any]) -> str:
    if found["reference"] is None:
        return f"| `{found['method']}` | none | | | {found.get('why', '')} |"
    differences = [found.get(f"max_{what}_difference") for what in ("output", "gradient")]
    numbers = " | ".join("" if number is None else f"{number:.1e}" for number in differences)
    return f"| `{found['method']}` | {found['reference']} | {numbers} | {found.get('note', '')} |"


def page() -> str:
    records = [record(method) for method in sorted(registry("methods"))]
    compared = sum(found["reference"] is not None for found in records)
    head = "| method | reference | outputs | gradients | note |\n|---|---|--:|--:|---|\n"
    summary = f"\n{compared} of {len(records)} methods were run beside a reference.\n\n"
    return INTRODUCTION + summary + head + "\n".join(map(row, records)) + "\n"


if __name__ == "__main__":
    (RESULTS / "fidelity.md").write_text(page())
