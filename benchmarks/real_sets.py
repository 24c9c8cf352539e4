"""Every real data set through its recipe: ``python benchmarks/real_sets.py [SET...] [--seeds 1] [--workers 2]``.

A set is `tasks/recipes/SET.toml`, which `mtpeft bench` runs: a linear probe, full fine-tuning, LoRA and HydraLoRA, with
learning rates chosen on validation; then HydraLoRA on random weights in the same way. Records go to
`results/real_sets/SET` and what is there is not run again. Sets that are not sequences get pictures of predictions.
Writes `results/real_sets.md`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from mtpeft.bench.runner import Comparison
from mtpeft.bench.table import failures, rows, table
from mtpeft.commands.bench import run

RECIPES = Path(__file__).parents[1] / "tasks" / "recipes"
RESULTS = Path(__file__).with_name("results")
SETS = {
    "carparts": "Parts of cars: boxes (AP) and pixels (mIoU) of 18 parts on the same 400 images, in one run. HydraLoRA "
    "was tested twice: the recipe's factor for its rates came after a first test, because of what validation said",
    "camvid": "Streets in eleven classes: 367 training images, mIoU",
    "bccd": "Blood cells of three classes: 205 training images, AP",
    "pacs": "Photographs, paintings, cartoons and sketches of seven classes: 1,400 training images, top-1",
    "pacs-domains": "The same, one domain after another under one head, no domain known in testing: top-1",
    "cifar10-5": "CIFAR-10, 300 images of each class: two classes after two others, no task known in testing: top-1",
}
RANDOM = 'bench.methods=["hydra-lora"]', "bench.relative_to=[]", "weights=random"
SHOWN = ("linear-probe", "hydra-lora")
INTRODUCTION = """\
# Real sets

ViT-Ti/16 (`augreg_in21k_ft_in1k`) at 160 px, 200 updates: the recipes in `tasks/recipes`, each made by `mtpeft bench`.
`random`: HydraLoRA on the same architecture without pre-training. For every method and set the same learning rates were
tried and chosen on validation alone; scores are of the test split, looked at once. All numbers in percent; `mean ±
standard deviation` where several seeds were run. Time (CPU seconds of training) and memory are relative to those of
full fine-tuning and of the linear probe. Of the recipes' three seeds, {seeds} was run. Samples in pictures are spread
evenly over the test split, none chosen. Made by `python benchmarks/real_sets.py`.
"""


def recipe(name: str) -> Path:
    return RECIPES / f"{name}.toml"


def plans(name: str, seeds: list[str]) -> dict[Path, list[str]]:
    """Where the records of a set go, with the settings that they are made with: on real weights, and on random ones."""
    place, seeded = RESULTS / "real_sets" / name, [f"bench.seeds=[{', '.join(seeds)}]"]
    return {place: seeded, place.with_name(f"{name}-random"): [*seeded, *RANDOM]}


def measure(name: str, seeds: list[str], workers: int) -> None:
    """Make what is missing of a set."""
    sequence = Comparison(recipe(name), RESULTS / "real_sets" / name).config.schedule.name == "sequential"
    for place, settings in plans(name, seeds).items():
        drawn = not sequence and "weights=random" not in settings
        run(recipe(name), out=place, workers=workers, settings=settings, table_only=False, pictures=drawn, json=False)


def report(seeds: list[str]) -> str:
    """The page."""
    parts, missing = [INTRODUCTION.format(seeds=", ".join(seeds))], []
    for name, title in SETS.items():
        made = [Comparison(recipe(name), place, settings) for place, settings in plans(name, seeds).items()]
        known, random = (rows(comparison) for comparison in made)
        found = [*known, *(replace(row, method="hydra-lora, random") for row in random)]
        missing += [f"{name}: {what}" for what in (*failures(made[0]), *made[0].missing())]
        missing += [f"{name}, random: {what}" for what in (*failures(made[1]), *made[1].missing())]
        if found:
            parts += [f"## {name}\n", f"{title}.\n", *table(made[0], found).markdown(), "", *pictures(name)]
    parts += ["## Not run\n", *([f"- {what}" for what in missing] or ["Nothing is missing."]), ""]
    return "\n".join(parts)


def pictures(name: str) -> list[str]:
    """Predictions of a set on samples spread evenly over the test split, with their truth."""
    found = []
    for method in SHOWN:
        for file in sorted((RESULTS / "real_sets" / name / "pictures" / method).glob("*/*.jpg")):
            about = f"{method}, {file.stem}"
            found += [
                f"{about}:\n",
                f"![{about}: truth above, prediction below]({file.relative_to(RESULTS).as_posix()})\n",
            ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help="all of them by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    seeds = [str(seed) for seed in range(options.seeds)]
    torch.set_num_threads(options.workers)
    for name in options.sets or SETS:
        measure(name, seeds, options.workers)
        (RESULTS / "real_sets.md").write_text(report(seeds), "utf-8")


if __name__ == "__main__":
    main()
