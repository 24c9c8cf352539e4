"""Kills, malformed inputs, hostile folders, full disks and broken plugins: ``python benchmarks/reliability.py VERB``.

Verbs: ``kills``, ``inputs``, ``hostile``, ``disks``, ``plugins``, and ``page``, which writes the page alone. Every case
runs in a process of its own and is one line of `results/reliability.jsonl`, with the commit it was run on; a case that
has one is not run again (``--anew`` runs all). ``--shard 1/4`` takes every fourth case, ``--seconds 600`` stops after
that time, ``--cases 1000`` bounds what has no end of its own. Ends with 1 where a case fails.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch
from step_table import table
from support import damaged_runs, hostile_folders, training_toy
from support.broken_plugins import AT_IMPORT, AT_REGISTRATION, WHEN_USED
from support.disk import Operations, broken_at, dead_at, full_from, interrupted_at
from support.packages import Packages, registers

from mtpeft import files
from mtpeft.cli import main as mtpeft

RESULTS = Path(__file__).with_name("results")
RECORDS, PAGE = RESULTS / "reliability.jsonl", RESULTS / "reliability.md"
LIMIT = 300
"""Seconds after which a case hangs."""
LINE = ["train", "--tasks", "a=colours,b=colours", "--backbone", "tiny", "--method", "toy@shared", "--device", "cpu"]
LINE += ["--steps", "8", "--schedule", "sequential", "--balance", "uw", "--resume", "--quiet"]
LINE += ["--set", "output.save_every=3", "--set", "schedule.eval_every=4", "--set", "output.keep=best", "--out"]
INTRODUCTION = """\
# Reliability

Made by `python benchmarks/reliability.py kills|inputs|hostile|disks|plugins`: a run of two tasks on a tiny backbone,
each case in a process of its own. A killed run is resumed by the same line until it ends, and then has the adapter,
results and log (clocks apart) of one that was never stopped. An input is a file of a run with a bit, bytes or a value
changed, read by `load`, `eval`'s way, `report`, `--resume` and `--from`; half of them with every hash made right again.
The malformed *data sets* are in the suite (`tests/tasks/test_fuzz.py`). Counts are of the cases that were run; a case
that was not is not claimed.

"""
Verdict = tuple[bool, str]
Case = tuple[str, Callable[[Path], Verdict]]
"""A case's name, and what is done in an empty folder: whether it went well, and what happened."""


# --- lives of a run


def quietly(line: list[str]) -> int:
    """`mtpeft` with nothing printed; its exit code."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    return mtpeft(line)


def forked(work: Callable[[], int]) -> int:
    """The pid of a child that works and exits with what that gives."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = work()
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def live(folder: Path, fault: Callable[[str, int], None] | None = None) -> int:
    """One life of the run in a child; its exit code."""

    def work() -> int:
        if fault is None:
            return quietly([*LINE, str(folder)])
        with Operations(folder, fault):
            return quietly([*LINE, str(folder)])

    return ended(forked(work))


def left(folder: Path) -> dict[str, Any]:
    """What a run is compared by."""
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return {
        "adapter": files.inventory(folder / "adapter"),
        "results": [results[name] for name in ("tasks", "stages", "matrix")],
        "log": [{key: value for key, value in line.items() if key != "measured"} for line in lines],
    }


def same(folder: Path, whole: dict[str, Any]) -> Verdict:
    different = [name for name, value in left(folder).items() if value != whole[name]]
    beside = sorted(place.name for place in folder.parent.iterdir() if place.name.startswith(".run"))
    return not different, f"{', '.join(different)} differ; {beside}" if different else "identical"


# --- verbs


def kills(whole: dict[str, Any], operations: int) -> Iterator[Case]:
    """Signals at random moments, and deaths before an operation, again and again."""
    number = 0
    while True:
        random = Random(number)
        how = ("SIGKILL", "SIGTERM", "SIGINT", "before an operation")[number % 4]

        def case(folder: Path, random: Random = random, how: str = how) -> Verdict:
            run, codes = folder / "run", []
            for _ in range(random.randrange(1, 6)):
                codes.append(_one_death(run, random, how, operations))
                if codes[-1] not in (0, 9, -9, 130, 143, -15, -2):
                    return False, f"exit codes {codes}"
            code = live(run)
            return (False, f"resumed with {code} after {codes}") if code else same(run, whole)

        yield f"{how}, seed {number}", case
        number += 1


def _one_death(run: Path, random: Random, how: str, operations: int) -> int:
    if how == "before an operation":
        return live(run, dead_at(random.randrange(1, operations + 1)))
    child = forked(lambda: quietly([*LINE, str(run)]))
    time.sleep(random.uniform(0, 2.5))
    os.kill(child, getattr(signal, how))
    return ended(child)


def disks(whole: dict[str, Any], operations: int) -> Iterator[Case]:
    """A full disk from every operation on, an error and a second Ctrl-C at every one."""
    for fault in (full_from, broken_at, interrupted_at):
        for start in range(1, operations + 1):

            def case(folder: Path, fault: Any = fault, start: int = start) -> Verdict:
                first = live(folder / "run", fault(start))
                if first not in (0, 1, 130):
                    return False, f"exit code {first}"
                code = live(folder / "run")
                return (False, f"resumed with {code} after {first}") if code else same(folder / "run", whole)

            yield f"{fault.__name__} {start}", case


def inputs(trained: Path) -> Iterator[Case]:
    """Changed files of a run, read in every way."""
    references = {way: read(trained) for way, read in damaged_runs.READERS.items()}
    number = 0
    while True:

        def case(folder: Path, number: int = number) -> Verdict:
            run = shutil.copytree(trained, folder / "run")
            name, believed = damaged_runs.change(run, Random(number))
            seen = {way: damaged_runs.outcome(read, run, references[way]) for way, read in damaged_runs.READERS.items()}
            wrong = {w: o for w, o in seen.items() if o.startswith("raw") or (o == "other" and not believed)}
            return not wrong, f"{name}: {wrong or dict(Counter(seen.values()))}"

        yield f"input {number}", case
        number += 1


def hostile(trained: Path) -> Iterator[Case]:
    """Folders that would have something run, read or written."""
    for name, spoil in hostile_folders.KINDS.items():
        for way in ("load", "open", "report"):

            def case(folder: Path, spoil: Any = spoil, way: str = way) -> Verdict:
                run = shutil.copytree(trained, folder / "run")
                spoil(run)
                with hostile_folders.Watch(folder) as watch:
                    said = damaged_runs.outcome(damaged_runs.READERS[way], run, None)
                return not watch.seen and not said.startswith("raw"), f"{said}; {watch.seen or 'nothing outside'}"

            yield f"{name}, {way}", case


def broken() -> Iterator[Case]:
    """Plugins broken when imported, registered or used: each is named, and another one works."""
    entries = {f"{n}, imported": (code, "", words) for n, (code, words) in AT_IMPORT.items()}
    entries |= {f"{n}, registered": (code, "", words) for n, (code, words) in AT_REGISTRATION.items()}
    for name, (code, things, words) in entries.items():

        def case(folder: Path, code: str = code, things: str = things, words: str = words) -> Verdict:
            sys.path.insert(0, str(folder))
            packages = Packages(folder)
            packages.install("mtpeft-good", registers("methods", good="mtpeft_plugins.partial.lora:Lora"))
            packages.install("mtpeft-bad", code, things=things)
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            script = "import sys; from mtpeft.cli import main; sys.exit(main(sys.argv[1:]))"
            done = subprocess.run([sys.executable, "-c", script, "plugins", "--json"], env=environment, text=True,
                                  capture_output=True, check=False)  # fmt: skip
            states = {row["name"]: row["state"] for row in json.loads(done.stdout)["plugins"]}
            good = states.get("mtpeft-good") == "loaded" and states.get("mtpeft-bad") != "loaded"
            named = words in done.stdout.replace("\\\\", "\\") or words in done.stdout.replace('\\"', '"')
            fine = done.returncode == 1 and good and "Traceback" not in done.stderr
            return fine, f"exit {done.returncode}, {states.get('mtpeft-bad')}{'' if named else ', in other words'}"

        yield name, case
    assert WHEN_USED  # those broken when used are in tests/test_broken_plugins.py


# --- running


def run_case(case: Callable[[Path], Verdict]) -> Verdict:
    """A case in a child with a time limit."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = os.pipe()

        def work() -> int:
            os.setpgrp()
            try:
                verdict = case(Path(folder))
            except Exception as error:
                verdict = False, f"{type(error).__name__}: {error}"
            os.write(theirs, json.dumps(verdict).encode()[:60_000])
            return 0

        child = forked(work)
        os.close(theirs)
        there = select.select([ours], [], [], LIMIT)[0]
        text = os.read(ours, 65_536) if there else b""
        os.close(ours)
        if not there:
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return tuple(json.loads(text)) if text else (False, "hangs" if not there else "died")


def commit() -> str:
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout
    changed = subprocess.run([*git, "status", "--porcelain", "-uno", "mtpeft"], capture_output=True, text=True).stdout
    return name.strip() + ("+" if changed else "")


def read_records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def page(records: list[dict[str, Any]]) -> str:
    """The table, and what failed."""
    newest = {(record["verb"], record["case"]): record for record in records}.values()
    rows = []
    for verb in VERBS:
        own = [record for record in newest if record["verb"] == verb]
        if own:
            good = sum(record["ok"] for record in own)
            commits = ", ".join(sorted({record["commit"] for record in own}))
            rows.append([verb, f"{len(own):,}", f"{good:,} of {len(own):,}", commits])
    failed = [f"- {r['verb']}, {r['case']}: {r['said'][:300]}\n" for r in newest if not r["ok"]]
    text = INTRODUCTION + f"torch {torch.__version__}, one process.\n\n"
    text += table(["verb", "cases", "as they should be", "commit"], rows)
    return text + ("\n## What fails\n\n" + "".join(failed) if failed else "")


VERBS = ("kills", "inputs", "hostile", "disks", "plugins")


def cases_of(verb: str, folder: Path) -> Iterator[Case]:
    """The cases of a verb; what they need is made in ``folder``."""
    if verb == "plugins":
        return broken()
    if verb in ("inputs", "hostile"):
        trained = damaged_runs.train(folder / "run")
        return inputs(trained) if verb == "inputs" else hostile(trained)
    with Operations(folder) as counted:
        assert mtpeft([*LINE, str(folder / "run")]) == 0
    return (kills if verb == "kills" else disks)(left(folder / "run"), counted.count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=[*VERBS, "page"])
    parser.add_argument("--shard", default="1/1")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--anew", action="store_true")
    given = parser.parse_args()
    failures = 0
    if given.verb != "page":
        failures = run(given.verb, given.shard, time.monotonic() + given.seconds, given.cases, given.anew)
    PAGE.write_text(page(read_records()))
    return int(failures > 0)


def run(verb: str, shard: str, until: float, most: int, anew: bool) -> int:
    """Run what is missing of a verb; how many cases failed."""
    torch.set_num_threads(1)
    training_toy.register()
    mine, shards = map(int, shard.split("/"))
    done = set() if anew else {record["case"] for record in read_records() if record["verb"] == verb}
    about, failures = commit(), 0
    with tempfile.TemporaryDirectory() as folder, RECORDS.open("a") as file:
        for name, case in islice(islice(cases_of(verb, Path(folder)), most), mine - 1, None, shards):
            if time.monotonic() > until:
                break
            if name in done:
                continue
            ok, said = run_case(case)
            failures += not ok
            file.write(json.dumps({"verb": verb, "case": name, "ok": ok, "said": said, "commit": about}) + "\n")
            file.flush()
            print(verb, name, "ok" if ok else "FAILS", said, sep="  ", file=sys.stderr)
    return failures


if __name__ == "__main__":
    sys.exit(main())
