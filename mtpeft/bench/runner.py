"""Methods x tasks x seeds: what to try, in which order, and what was chosen."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, cast

from mtpeft.bench.processes import Processes
from mtpeft.bench.trials import TOGETHER, Record, Records, Trial
from mtpeft.config import Config, load_plan, load_trial
from mtpeft.data.split_classes import split_classes
from mtpeft.errors import MtpeftError, UsageError, did_you_mean
from mtpeft.files import read_json, write_json
from mtpeft.plugins import registry, resolve
from mtpeft.recipe import EVERY_METHOD
from mtpeft.task import SPLITS, Split
from mtpeft.training.setup import build_methods, build_tasks
from mtpeft.training.validation import improvement

PER_TRIAL = {
    "seed": "bench.seeds has the seeds",
    "output.dir": "--out names the folder of the records",
    "evaluate_on": "val is for the choice of a learning rate, test for what was chosen",
}
"""What no setting can say of all trainings, and what says it."""


@dataclass(frozen=True)
class Choice:
    """What was tried for a method on a task, by learning rate, and which was the best on validation."""

    tried: dict[Trial, Record]
    best: Trial


class Comparison:
    """A recipe's ``[bench]`` table as trials: those that were made, and those that are still to be made.

    A method's first seed chooses a learning rate on ``val`` in trials that cannot open ``test``; then, once, what was
    chosen is tested: that very run, or with ``refit`` one trained on ``train`` and ``val``. Further seeds train with
    the same rate.

    Args:
        recipe: a recipe with tasks and a ``[bench]`` table.
        folder: where records are kept; a trial whose record is there is not made again.
        settings: ``KEY=VALUE`` over the recipe, for all trials.
        say: told what happens.
        pictures: draw what the tested runs of the first seed say of some samples, as ``pictures/METHOD/TASK``.

    Raises:
        UsageError: for a recipe that does not say what to compare, or another one than the folder was made with.
    """

    def __init__(
        self,
        recipe: Path,
        folder: Path,
        settings: Sequence[str] = (),
        say: Callable[[str], None] = print,
        *,
        pictures: bool = False,
    ) -> None:
        self.recipe, self.folder, self.settings, self.say = recipe, folder, tuple(settings), say
        self.pictures = pictures
        self.records = Records(folder / "records.jsonl")
        self.config = split_classes(load_plan(recipe, settings))
        self.settled = self.config.bench
        self.methods = methods_of(self.config)
        self.tasks = (TOGETHER,) if self.settled.together else tuple(self.config.tasks)
        self.signs = {n: 1 if resolve("tasks", t.type).higher_is_better else -1 for n, t in self.config.tasks.items()}
        check(self.config, self.methods)
        build_methods(self.config)
        for method in self.methods:
            build_methods(load_trial(recipe, settings, {"--method": method}))

    def run(self, workers: int, threads: int) -> None:
        """Make every trial that is missing, ``workers`` at a time with ``threads`` each.

        Raises:
            KeyboardInterrupt: with everything kept that was finished.
        """
        processes = Processes(threads)
        first, *others = self.settled.seeds
        with ThreadPoolExecutor(workers) as pool:
            try:
                self._make(pool, workers, processes, self.methods, first)
                for seed in others:
                    self._make(pool, workers, processes, self.leading(), seed)
            except BaseException:
                processes.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _make(
        self, pool: ThreadPoolExecutor, workers: int, processes: Processes, methods: Sequence[str], seed: int
    ) -> None:
        """All trials of the methods from one seed; a method is begun on a task where a worker would else do nothing."""
        jobs = deque(product(methods, self.tasks))
        running: dict[Future[None], tuple[str, str]] = {}

        def go_on(job: tuple[str, str]) -> None:
            trials = self._next(*job, seed)
            running.update({pool.submit(self._trial, processes, trial): job for trial in trials})
            if not trials:
                shutil.rmtree(self._work(*job), ignore_errors=True)

        while jobs or running:
            while jobs and len(running) < workers:
                go_on(jobs.popleft())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                future.result()
                if job not in running.values():
                    go_on(job)

    def _next(self, method: str, task: str, seed: int) -> list[Trial]:
        """What of a method on a task can be made now: candidates, then the test of the chosen one, then nothing."""
        wanted = self.candidates(method, task) if seed == self.settled.seeds[0] else []
        if untried := [trial for trial in wanted if self.records.get(trial) is None]:
            return untried
        tested = self.test(method, task, seed)
        return [tested] if tested is not None and self.records.get(tested) is None else []

    def _trial(self, processes: Processes, trial: Trial) -> None:
        record = processes.run(self.config_of(trial), self._trained(trial), self._drawn(trial))
        self.records.add(trial, record)
        scores = ", ".join(f"{task} {value:.2f}" for task, value in record.scores.items() if value is not None)
        self.say(f"{trial}: {record.error or scores}")

    def _drawn(self, trial: Trial) -> Path | None:
        """The folder for the pictures of a trial, if it has any."""
        wanted = self.pictures and (trial.split, trial.seed) == ("test", self.settled.seeds[0])
        return trial.folder(self.folder / "pictures").parent if wanted else None

    def config_of(self, trial: Trial) -> Config:
        """What `mtpeft train` would be told to make a trial."""
        settings = [*self.settings, f"evaluate_on={trial.split}"]
        if trial.lr is not None:
            settings.append(f"optimizer.lr={trial.lr!r}")
            if self.config.optimizer.head_lr is None:
                settings.append(f"optimizer.head_lr={_rounded(trial.lr / self._factor(trial.method))!r}")
        if self.settled.refit and trial.split == "test":
            settings.append('train_on=["train", "val"]')
        flags = {"--method": trial.method, "--seed": trial.seed, "--out": trial.folder(self.folder / "work")}
        config = split_classes(load_trial(self.recipe, settings, flags))
        tasks = {name: task for name, task in config.tasks.items() if trial.task in (name, TOGETHER)}
        return replace(config, tasks=tasks, output=replace(config.output, save_every=0))

    def _trained(self, trial: Trial) -> Path | None:
        """The run that chose a trial's learning rate, where its weights are to be tested and are still there."""
        chosen = self.choice(trial.method, trial.task)
        if trial.split == "val" or self.settled.refit or chosen is None or chosen.best.seed != trial.seed:
            return None
        folder = chosen.best.folder(self.folder / "work")
        return folder if (folder / "results.json").exists() else None

    def _work(self, method: str, task: str) -> Path:
        return Trial(method, task, None, 0, "val").folder(self.folder / "work").parent

    def candidates(self, method: str, task: str) -> list[Trial]:
        """The trials among which validation chooses; none without learning rates to choose from."""
        factor, seed = self._factor(method), self.settled.seeds[0]
        return [Trial(method, task, _rounded(rate * factor), seed, "val") for rate in self.settled.learning_rates]

    def _factor(self, method: str) -> float:
        return self.settled.rate_factors.get(method, 1.0)

    def choice(self, method: str, task: str) -> Choice | None:
        """The best candidate on validation, over all its tasks; None while not all were tried, or where all failed."""
        tried = {trial: self.records.get(trial) for trial in self.candidates(method, task)}
        found = {trial: record for trial, record in tried.items() if record is not None}
        good = [trial for trial, record in found.items() if not record.error]
        if len(found) < len(tried) or not good:
            return None
        best, *others = good
        for other in others:
            best = other if improvement(self._signed(found[best]), self._signed(found[other])) > 0 else best
        return Choice(found, best)

    def _signed(self, record: Record) -> dict[str, float]:
        """The scores that are defined, higher is better."""
        return {task: self.signs[task] * value for task, value in record.scores.items() if value is not None}

    def test(self, method: str, task: str, seed: int) -> Trial | None:
        """The trial whose score is reported; None while its learning rate is not chosen."""
        if not self.settled.learning_rates:
            return Trial(method, task, None, seed, "test")
        chosen = self.choice(method, task)
        return Trial(method, task, chosen.best.lr, seed, "test") if chosen else None

    def tested(self, method: str, task: str) -> list[tuple[Trial, Record]]:
        """The reported trials that were made, by seed; with the costs of the training that was tested."""
        trials = [self.test(method, task, seed) for seed in self.settled.seeds]
        made = [(trial, self.records.get(trial)) for trial in trials if trial is not None]
        return [(trial, self._with_costs(trial, record)) for trial, record in made if record is not None]

    def errors(self, method: str, task: str) -> list[str]:
        """Why trials of a method on a task have no score."""
        trials = [*self.candidates(method, task), *(self.test(method, task, seed) for seed in self.settled.seeds)]
        found = [self.records.get(trial) for trial in trials if trial is not None]
        return [record.error for record in found if record is not None and record.error]

    def _with_costs(self, trial: Trial, record: Record) -> Record:
        chosen = self.choice(trial.method, trial.task)
        if record.costs or record.error or chosen is None:
            return record
        trained = chosen.tried[chosen.best]
        return replace(record, costs=trained.costs, seconds=trained.seconds, memory_bytes=trained.memory_bytes)

    def leading(self) -> list[str]:
        """The methods that get all seeds: the best by their mean rank on validation; all where ``top`` is 0."""
        if not self.settled.top:
            return list(self.methods)
        places = {method: [self._place(method, task) for task in self.tasks] for method in self.methods}
        return sorted(self.methods, key=lambda method: mean(places[method]))[: self.settled.top]

    def _place(self, method: str, task: str) -> int:
        """How many methods are better on validation; all of them, where it has no score."""
        scores = {other: self._signed(c.tried[c.best]) for other in self.methods if (c := self.choice(other, task))}
        if method not in scores:
            return len(self.methods)
        return sum(improvement(scores[method], score) > 0 for score in scores.values())

    def missing(self) -> list[str]:
        """What is neither in the table nor failed, in words: a method's tasks of each seed."""
        gaps: dict[tuple[str, int], list[str]] = {}
        first = self.settled.seeds[0]
        complete = not any(self._next(method, task, first) for method in self.methods for task in self.tasks)
        for method in self.methods:
            wanted = self.settled.seeds if complete and method in self.leading() else (first,)
            for task, seed in product(self.tasks, wanted):
                if self._next(method, task, seed):
                    gaps.setdefault((method, seed), []).append(task)
        return [f"{method}, seed {seed}: {', '.join(tasks)}" for (method, seed), tasks in gaps.items()]


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")


def methods_of(config: Config) -> tuple[str, ...]:
    """The methods that a plan compares.

    Raises:
        UsageError: where it names none, or one twice.
    """
    named = config.bench.methods or tuple(method.label for method in config.methods)
    every = dict.fromkeys((*config.bench.relative_to, *registry("methods")))
    methods = tuple(every) if named == (EVERY_METHOD,) else named
    if not methods:
        hint = 'e.g. methods = ["lora", "adaptformer"], or ["*"] for all'
        raise UsageError("bench.methods names no method", hint=hint)
    if len(set(methods)) < len(methods):
        raise UsageError("bench.methods names a method twice", hint="name each once")
    return methods


def check(config: Config, methods: Sequence[str]) -> None:
    """
    Raises:
        UsageError: for groups of unknown tasks, an unknown method to compare costs with, ``top`` without a choice, or
            ``--set`` of what differs between trainings.
    """
    plan = config.bench
    rate = {"optimizer.lr": "bench.learning_rates has the rates"} if plan.learning_rates else {}
    for key, instead in (PER_TRIAL | rate).items():
        if config.origins.get(key) == "--set":
            raise UsageError(f"--set {key} is not for mtpeft bench, where trainings differ in it", hint=instead)
    for group, tasks in plan.groups.items():
        for task in tasks:
            if task not in config.tasks:
                hint = did_you_mean(task, config.tasks)
                raise UsageError(f'bench.groups.{group} names a task "{task}" that there is not', hint=hint)
    for name in plan.relative_to:
        if name not in methods:
            hint = did_you_mean(name, methods)
            raise UsageError(f'bench.relative_to names "{name}", which is not compared', hint=hint)
    if plan.top and not plan.learning_rates:
        raise UsageError("bench.top needs validation scores", hint="give bench.learning_rates to choose from")


def remember(config: Config, folder: Path, recipe: Path) -> None:
    """Keep the resolved plan beside the records, or hold it against what is kept.

    Raises:
        MtpeftError: where the records in ``folder`` are those of another plan, naming what differs.
    """
    path = folder / "plan.toml"
    text = portable(config, recipe.resolve().parent)
    kept = path.read_text("utf-8") if path.exists() else text
    if kept != text:
        differing = _differing(tomllib.loads(kept), tomllib.loads(text))
        message = f'"{folder}" holds the records of another plan: {differing} is not what it was'
        raise MtpeftError(message, hint="give another --out, or that plan")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _differing(kept: Any, now: Any) -> str:
    """Dotted name of the first setting that is another."""
    if not isinstance(kept, dict) or not isinstance(now, dict):
        return ""
    name = next((name for name in {**kept, **now} if kept.get(name) != now.get(name)), "")
    return f"{name}.{_differing(kept.get(name), now.get(name))}".rstrip(".")


def portable(config: Config, base: Path) -> str:
    """A configuration with its paths relative to ``base``: the same wherever recipe and data were put together.

    How samples are loaded is left out: it changes nothing.
    """
    places = [str(task.settings.get("data", "")).partition(":")[2].partition("?")[0] for task in config.tasks.values()]
    places += [place.partition("@")[2] for place in places]
    text = replace(config, workers=0, cache=None).to_toml()
    for place in sorted({config.weights or "", *places}, key=len, reverse=True):
        if Path(place).is_absolute():
            text = text.replace(place, Path(os.path.relpath(place, base)).as_posix())
    return text


def remember_data(config: Config, folder: Path) -> None:
    """Keep what says which data it is beside the records, or hold it against what is kept: one table, one data.

    Raises:
        MtpeftError: where the records in ``folder`` are of other data, naming task and split.
    """
    path, found = folder / "data.json", manifests(config)
    for task, splits in (read_json(path) if path.exists() else {}).items():
        for split, kept in splits.items():
            if found[task][split] != kept:
                message = f'"{folder}" holds records of other data: the {split} split of "{task}" has changed'
                raise MtpeftError(message, hint="give another --out, or that data")
    write_json(path, found)


def manifests(config: Config) -> dict[str, dict[str, Any]]:
    """What each task's data records of its splits, in plain values.

    Raises:
        DataError: for data that cannot be used.
    """
    tasks, seed = build_tasks(config), config.data_seed or 0
    whole = {n: {s: task.dataset(cast(Split, s), seed=seed).manifest() for s in SPLITS} for n, task in tasks.items()}
    return json.loads(json.dumps(whole))
