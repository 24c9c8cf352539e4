"""Does the embedded backbone's pre-training matter? Three tasks trained jointly, three seeds, four settings.

    python benchmarks/pretraining_matters.py --steps 400

Each cell is one `mtpeft train` in a process of its own; its numbers go to `results/pretraining_matters/`, and a cell
that is there is not run again. The table goes to `results/pretraining_matters.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
TASKS = ("cls", "det", "seg")
BACKBONES = {
    "micro": ("--backbone", "micro"),
    "micro-random": ("--backbone", "micro", "--weights", "random"),
}
SETTINGS = (
    ("hydra-lora", "micro"),
    ("hydra-lora", "micro-random"),
    ("linear-probe", "micro"),
    ("full", "micro"),
)


@dataclass(frozen=True)
class Cell:
    """One training: a method on a backbone from a seed."""

    method: str
    backbone: str
    seed: int
    steps: int

    @property
    def path(self) -> Path:
        return RESULTS / "pretraining_matters" / f"{self.method}-{self.backbone}-{self.steps}-{self.seed}.json"

    def command(self, out: Path) -> list[str]:
        return [
            *(sys.executable, "-c", "from mtpeft.cli import main; main()", "train"),
            *("--tasks", ",".join(TASKS), "--method", self.method, *BACKBONES[self.backbone]),
            *("--seed", str(self.seed), "--steps", str(self.steps), "--out", str(out)),
        ]

    def run(self) -> None:
        """Train, and keep what `results.json` says. Raises CalledProcessError where training fails."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            subprocess.run(self.command(out), check=True, stdout=sys.stderr)
            results = json.loads((out / "results.json").read_text())
        record = {"cell": vars(self), "columns": columns(results), "costs": results["costs"]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=1) + "\n")


def columns(results: dict) -> dict[str, float | None]:
    """The numbers of the table: each task's metric after the last stage, and the AP50 of detection."""
    last = max(entry["stage"] for entry in results["matrix"])
    numbers = {}
    for entry in results["matrix"]:
        if entry["stage"] == last:
            numbers[f"{entry['task']} ({results['tasks'][entry['task']]['metric']})"] = entry["value"]
            if "AP50" in entry["detail"]:
                numbers[f"{entry['task']} (AP50)"] = entry["detail"]["AP50"]
    return numbers


def spread(numbers: list[float | None]) -> str:
    """``mean ± standard deviation`` over the seeds; a dash where one is undefined."""
    if None in numbers:
        return "-"
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.mean(numbers):.2f} ± {deviation:.2f}"


def row(records: list[dict]) -> str:
    """One line of the table: the records of one setting, one for each seed."""
    cell = records[0]["cell"]
    numbers = [spread([record["columns"][name] for record in records]) for name in records[0]["columns"]]
    return f"| {cell['method']} | {cell['backbone']} | " + " | ".join(numbers) + f" | {len(records)} |"


def table(records: list[dict]) -> str:
    """The markdown table of all records that there are."""
    head = ["method", "backbone", *records[0]["columns"], "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    for setting in SETTINGS:
        chosen = [r for r in records if (r["cell"]["method"], r["cell"]["backbone"]) == setting]
        lines += [row(chosen)] if chosen else []
    return "\n".join(lines) + "\n"


def report(records: list[dict], steps: int) -> str:
    return (
        "# Pre-training matters\n\n"
        f"`cls`, `det` and `seg` of the embedded digits trained jointly for {steps} updates; mean ± standard\n"
        "deviation over seeds. `micro-random`: the same architecture with random weights; `full`: the reference.\n"
        f"Made by `python benchmarks/pretraining_matters.py --steps {steps}`.\n\n" + table(records)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    cells = [Cell(*setting, seed, options.steps) for seed in range(options.seeds) for setting in SETTINGS]
    for cell in cells:
        if not cell.path.exists():
            cell.run()
        records = [json.loads(other.path.read_text()) for other in cells if other.path.exists()]
        (RESULTS / "pretraining_matters.md").write_text(report(records, options.steps))


if __name__ == "__main__":
    main()
