"""Are the weights that a fixed seed gives still the same, bit for bit, after the code was changed?

    python benchmarks/same_bits.py record --checkout OLD_CHECKOUT --out old.json
    python benchmarks/same_bits.py record --checkout . --out new.json
    python benchmarks/same_bits.py compare old.json new.json

`record` runs the trainings below, a handful of updates each, with the code of a checkout, one process and one thread
for each; 13 minutes of CPU in all. It keeps a hash of every tensor that a run saves, and its results. Only the
command line and the files of a run are used, so any two versions that have these can be compared, on one machine with
one set of packages: other CPUs and other versions of torch round differently. `compare` exits with 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import deserialize

COMMON = "--steps 6 --quiet --set device=cpu --set evaluate_on=val"
SETTINGS = {"cls": ["batch_size=8", "samples=96"], "det": ["batch_size=4"], "seg": ["batch_size=4"]}
SMALL = "--weights random --set image_size=64 --backbone"
STAGES = "--set backbone_options.depths=[1,1,1,1]"
VIT = f"{SMALL} vit_tiny_patch16_224 --set backbone_options.depth=3"
EVA = f"{SMALL} eva02_tiny_patch14_224 --set backbone_options.depth=3 --set backbone_options.patch_size=16"
SWIN = f"{SMALL} swin_tiny_patch4_window7_224 {STAGES} --set backbone_options.embed_dim=24"
CONVNEXT = f"{SMALL} convnext_tiny {STAGES} --set backbone_options.dims=[16,24,32,48]"

TRAININGS = f"""
cls,det,seg hydra-lora --set evaluate_on=test
cls,det,seg hydra-lora --set methods.hydra-lora.route=both --set methods.hydra-lora.dropout=0.1
cls,det,seg lora
cls,det,seg lora --seed 7
cls,det,seg lora@task
cls,det,seg adaptformer@task
cls,det,seg lora@shared+adaptformer@task
cls,det,seg vpt-deep
cls,det,seg ssf
cls,det,seg dora
cls,det,seg bitfit
cls,det,seg lst
cls,det,seg full
cls,det,seg linear-probe
cls,det,seg lora --schedule sequential
cls,det,seg lora@task --schedule sequential
cls,det,seg adalora@task --schedule sequential --set methods.adalora.interval=1
cls,det,seg lora --schedule interleaved
cls,det,seg ssf@task --schedule interleaved --set schedule.sampler=mixed
cls,det,seg lora --balance uw
cls,det,seg lora --balance dwa --set balance.window=2
cls,det,seg lora --balance rlw
cls,det,seg lora@shared+vpt-deep@task --set schedule.accumulate=2
cls,det,seg hydra-lora --set optimizer.checkpointing=true
cls,det,seg lora --set optimizer.precision=bf16
cls,det,seg lora --set output.keep=best --set schedule.eval_every=2
cls,det,seg spt@task --set methods.spt.budget=20000 --set methods.spt.calibration_batches=3
cls,det,seg gps --set methods.gps.calibration_batches=3
cls,det,seg lora --set tasks.det.head.name=faster-rcnn --set tasks.seg.head.name=upernet
depth,edges,normals,saliency,multi-label lora@task
cls lora --set tasks.cls.split=5 --schedule sequential
cls hydra-lora --set tasks.cls.split=[4,3,3] --schedule sequential
cls adalora --set methods.adalora.interval=1
cls gps
cls spt
cls spt --set methods.spt.form=adapter --set methods.spt.budget=20000
cls sct
cls hra --set methods.hra.orthogonality=0.1
cls lora --set methods.lora.init=eva
cls lora --set methods.lora.init=pissa --set methods.lora.dropout=0.1
cls e2vpt --set methods.e2vpt.prune=0.4 --set methods.e2vpt.prune_segments=0.3
cls adapter-pfeiffer+gist
cls noah --set methods.noah.generations=1 --set methods.noah.population=4 --set methods.noah.samples=40
cls fact-tk+prefix+adapter-houlsby+ln-tune
cls fact-tt+vpt-shallow+adapter-plus+attnscale
cls difffit+vera+ia3+compacter
cls arc+patt+lorand+mona
cls loha+dtl+bi-adapter+adapterbias
cls lokr+dtl-plus+convpass+vp
cls glora+mam
cls res-tuning+vqt
cls efft+u-tuning
cls repadapter+fourierft
cls oft+krona
cls boft+kadaptation+hydra
cls snell+lora-fa
cls partial-k+randlora
cls attn-only
cls lora@shared+adaptformer@task {VIT}
cls vpt-deep+bitfit {VIT} --set image_size=[48,64]
cls lora+ssf {EVA}
cls lora@shared+adaptformer@task {SWIN}
cls hydra-lora+ln-tune {CONVNEXT}
cls lora+bitfit {SMALL} resnet10t
cls lora@task then det lora@task --from 0
cls lora then cls,det,seg lora --from 0
"""
"""A line for each: tasks, methods and further flags; ``then`` stands between two runs, whose folders are 0 and 1."""


def record(checkout: Path, line: str) -> dict[str, Any]:
    """What the last run of a line leaves, ``tensors`` by file and name and ``matrix``, or why it ``failed``."""
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(line.split(" then ")):
            tasks, methods, *flags = shlex.split(run)
            settings = [f"--set=tasks.{task}.{value}" for task in tasks.split(",") for value in SETTINGS.get(task, ())]
            words = ["--tasks", tasks, "--method", methods, *COMMON.split(), *settings, *flags, "--out", str(number)]
            code = "from mtpeft.cli import main; raise SystemExit(main())"
            done = python(checkout, Path(folder), "-c", code, "train", *words)
            if done.returncode:
                return {"failed": done.stderr.strip()[-500:]}
        last = Path(folder, str(number))
        files = sorted(Path(last, "adapter").glob("*.safetensors"))
        matrix = json.loads(Path(last, "results.json").read_text("utf-8"))["matrix"]
        return {
            "tensors": {file.name: hashes(file) for file in files},
            "matrix": [{key: row[key] for key in ("stage", "task", "value", "count")} for row in matrix],
        }


def python(checkout: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python process with the code of a checkout, in a folder of its own."""
    paths = [str(checkout / place) for place in ("", "plugins", "tasks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def hashes(file: Path) -> dict[str, str]:
    """Tensor -> SHA-256 of its type, shape and bytes."""
    found = {}
    for name, tensor in sorted(deserialize(file.read_bytes())):
        digest = hashlib.sha256(f"{tensor['dtype']} {list(tensor['shape'])} ".encode())
        digest.update(tensor["data"])
        found[name] = digest.hexdigest()
    return found


def record_all(checkout: Path, lines: list[str], jobs: int) -> dict[str, Any]:
    """Every line's record, and the versions of what it was made with.

    Raises:
        SystemExit: if another mtpeft than that of the checkout would run.
    """
    names = ("mtpeft", "mtpeft_plugins", "mtpeft_tasks")
    code = f"import {', '.join(names)}; print(*({'.__file__, '.join(names)}.__file__), sep='\\n')"
    found = python(checkout, checkout, "-c", code)
    if found.returncode or not all(Path(path).is_relative_to(checkout) for path in found.stdout.split("\n")[:3]):
        raise SystemExit(f"{checkout} is no checkout of mtpeft: {found.stderr.strip() or found.stdout}")
    trainings = {}
    with ThreadPoolExecutor(jobs) as pool:
        for line, result in zip(lines, pool.map(partial(record, checkout), lines), strict=True):
            trainings[line] = result
            print(f"{'FAILED' if 'failed' in result else 'recorded':10}{line}", flush=True)
    versions = {name: version(name) for name in ("torch", "torchvision", "timm")}
    return {"versions": {"python": sys.version.split()[0], **versions}, "trainings": trainings}


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What differs between two records of one training, a text for each; tensors first."""
    for which, one in (("old", old), ("new", new)):
        if one.get("failed", not one):
            yield f"{which}: {one.get('failed', 'not recorded')}"
    if "tensors" not in old or "tensors" not in new:
        return
    before, after = tensors(old), tensors(new)
    for name in before | after:
        if before.get(name) != after.get(name):
            kind = "missing" if name not in after else "added" if name not in before else "different"
            yield f"{name} is {kind}"
    rows = [{(row["stage"], row["task"]): (row["value"], row["count"]) for row in one["matrix"]} for one in (old, new)]
    for cell in rows[0] | rows[1]:
        if rows[0].get(cell) != rows[1].get(cell):
            yield f"stage {cell[0]}, {cell[1]}: value and count {rows[0].get(cell)} -> {rows[1].get(cell)}"


def tensors(one: dict[str, Any]) -> dict[str, str]:
    return {f"{file}: {name}": digest for file, names in one["tensors"].items() for name, digest in names.items()}


def compare(old: dict[str, Any], new: dict[str, Any], wanted: str, shown: int = 4) -> bool:
    """Print a line for each training, and the first differences below it; whether there is none."""
    if old["versions"] != new["versions"]:
        print(f"made with other versions: {old['versions']} and {new['versions']}")
    lines = [line for line in old["trainings"] | new["trainings"] if wanted in line]
    differing = 0
    for line in lines:
        found = list(differences(old["trainings"].get(line, {}), new["trainings"].get(line, {})))
        differing += bool(found)
        print(f"{'DIFFERENT' if found else 'identical':11}{line}")
        print("".join(f"    {text}\n" for text in found[:shown]), end="")
        if len(found) > shown:
            print(f"    and {len(found) - shown} more")
    print(f"{len(lines) - differing} of {len(lines)} trainings are identical")
    return not differing


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the trainings with the code of a checkout")
    recording.add_argument("--checkout", type=Path, required=True)
    recording.add_argument("--out", type=Path, required=True, help="a JSON file")
    recording.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    comparing = commands.add_parser("compare", help="say what differs between two records")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    for command in (recording, comparing):
        command.add_argument("--only", default="", metavar="TEXT", help="only the trainings whose line has this text")
    given = parser.parse_args()
    if given.command == "compare":
        old, new = (json.loads(path.read_text("utf-8")) for path in (given.old, given.new))
        return int(not compare(old, new, given.only))
    lines = [line for line in TRAININGS.strip().split("\n") if given.only in line]
    found = record_all(given.checkout.resolve(), lines, given.jobs)
    given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return int(any("failed" in result for result in found["trainings"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
