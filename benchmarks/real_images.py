"""Real photographs, cells and streets on real ViT-Ti weights: three tasks jointly and one after another.

    python benchmarks/real_images.py --data DATA            # the grid
    python benchmarks/real_images.py --data DATA --select   # learning rates on validation, before it; else methods' own

Each cell is one `mtpeft train` of a recipe in a process of its own; its numbers go to `results/real_images/`, and a
cell that is there is not run again, so the grid can be stopped and started. Learning rates are chosen on validation
alone, with shorter runs whose test scores are thrown away. The table goes to `results/real_images.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import timm
import torch
from real_images_table import report
from safetensors.torch import save_file

BENCHMARKS = Path(__file__).parent
RECIPES = BENCHMARKS.parent / "tasks" / "recipes"
CELLS = BENCHMARKS / "results" / "real_images"
BESIDE = BENCHMARKS.parents[1] / "shared" / "data"
MODEL = "vit_tiny_patch16_224"
WEIGHTS = f"weights/{MODEL}.augreg_in21k_ft_in1k.safetensors"
PLACES = {
    "pacs": "folder:{}/pacs/photo",
    "bccd": "voc:{}/bccd?degenerate=skip",
    "camvid": "masks:{}/camvid",
}
METHODS = ("hydra-lora", "linear-probe", "full", "lora")
RATES = (3e-4, 1e-3, 3e-3)
SELECTION_STEPS = 120


@dataclass(frozen=True)
class Cell:
    """One training: a method on weights (``pretrained`` or ``random``) under a schedule, from a seed.

    ``lr`` is None for the method's own learning rate.
    """

    method: str
    schedule: str
    weights: str
    seed: int
    lr: float | None
    steps: int

    @property
    def path(self) -> Path:
        rate = "own" if self.lr is None else f"{self.lr:g}"
        return CELLS / f"{self.method}-{self.schedule}-{self.weights}-{self.steps}-{rate}-{self.seed}.json"

    def command(self, data: Path, weights: Path, out: Path) -> list[str]:
        places = [f"tasks.{name}.data={place.format(data)}" for name, place in PLACES.items()]
        return [
            *(sys.executable, "-c", "from mtpeft.cli import main; main()", "train"),
            *(str(RECIPES / f"pacs-bccd-camvid-{self.schedule}.toml"), "--method", self.method),
            *("--weights", str(weights), "--seed", str(self.seed), "--steps", str(self.steps), "--out", str(out)),
            *(word for place in places for word in ("--set", place)),
            *(("--set", f"optimizer.lr={self.lr:g}") if self.lr is not None else ()),
            *("--set", "output.save_every=0"),
        ]

    def run(self, data: Path, keep_test: bool = True) -> None:
        """Train, and keep the results; of a run that only selects, what validation said.

        Raises:
            subprocess.CalledProcessError: where training fails.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            subprocess.run(self.command(data, self.file(data, Path(folder)), out), check=True, stdout=sys.stderr)
            found = {"results": json.loads((out / "results.json").read_text())} if keep_test else {}
            found["validation"] = validation(out / "events.jsonl")
        about = {"cell": asdict(self), "torch": torch.__version__, "timm": timm.__version__, "threads": threads()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({**about, **found}, indent=1) + "\n")

    def file(self, data: Path, folder: Path) -> Path:
        """The backbone's weights: those of the data folder, or random ones drawn from seed 0."""
        if self.weights == "pretrained":
            return data / WEIGHTS
        torch.manual_seed(0)
        save_file(timm.create_model(MODEL).state_dict(), folder / "random.safetensors")
        return folder / "random.safetensors"


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def validation(log: Path) -> dict[str, float]:
    """Each task's score on validation, at the end of its stage."""
    entries = (json.loads(line) for line in log.read_text().splitlines())
    return {e["task"]: e["value"] for e in entries if e["event"] == "evaluate" and e["split"] == "val"}


def candidates(method: str) -> list[Cell]:
    """Short joint trainings, one for each learning rate; full fine-tuning wants smaller ones."""
    rates = [rate / 10 for rate in RATES] if method == "full" else RATES
    return [Cell(method, "joint", "pretrained", 0, rate, SELECTION_STEPS) for rate in rates]


def chosen_rate(method: str) -> float | None:
    """The learning rate of the best mean over the tasks on validation; None while not all were tried."""
    found = [cell for cell in candidates(method) if cell.path.exists()]
    if len(found) < len(RATES):
        return None
    return max(found, key=lambda cell: mean(json.loads(cell.path.read_text())["validation"].values())).lr


def grid(seeds: int, steps: int) -> Iterator[Cell]:
    """All cells, one whole seed after another."""
    rates = {method: chosen_rate(method) for method in METHODS}
    for seed in range(seeds):
        for method in METHODS:
            for schedule in ("joint", "sequential"):
                yield Cell(method, schedule, "pretrained", seed, rates[method], steps)
        yield Cell("hydra-lora", "joint", "random", seed, rates["hydra-lora"], steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=BESIDE, help="folder with weights/, pacs/, bccd/ and camvid/")
    parser.add_argument("--select", action="store_true", help="try learning rates on validation")
    parser.add_argument("--steps", type=int, default=300, help="updates of a stage")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only write the table of what there is")
    options = parser.parse_args()
    tried = [cell for method in METHODS for cell in candidates(method)]
    cells = tried if options.select else list(grid(options.seeds, options.steps))
    for cell in cells:
        if not (options.table or cell.path.exists()):
            cell.run(options.data.resolve(), keep_test=not options.select)
        if not options.select:
            text = report([c.path for c in tried], [c.path for c in cells])
            (CELLS.parent / "real_images.md").write_text(text)


if __name__ == "__main__":
    main()
