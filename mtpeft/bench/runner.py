"""Methods x tasks x seeds: what to try, in which order, and what was chosen."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean

from mtpeft.bench.identity import identity_of
from mtpeft.bench.plan import BenchConfig, check, load_plan, load_trial, methods_of
from mtpeft.bench.processes import Processes
from mtpeft.bench.trials import TOGETHER, Record, Records, Trial
from mtpeft.config import Config
from mtpeft.data.split_classes import split_classes
from mtpeft.peft.configured import build_methods
from mtpeft.plugins import resolve
from mtpeft.training.validation import improvement


@dataclass(frozen=True)
class ChosenRate:
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
        self.configs: dict[Trial, tuple[str, Config]] = {}
        self.config = split_classes(load_plan(recipe, settings))
        self.bench = self.config.table(BenchConfig)
        self.methods = methods_of(self.config)
        self.tasks = (TOGETHER,) if self.bench.together else tuple(self.config.tasks)
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
        first, *others = self.bench.seeds
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
        wanted = self.candidates(method, task) if seed == self.bench.seeds[0] else []
        if untried := [trial for trial in wanted if self.record(trial) is None]:
            return untried
        tested = self.test(method, task, seed)
        return [tested] if tested is not None and self.record(tested) is None else []

    def _trial(self, processes: Processes, trial: Trial) -> None:
        record = processes.run(self.config_of(trial), self._trained(trial), self._drawn(trial))
        self.records.add(trial, replace(record, config=self.identity(trial)))
        scores = ", ".join(f"{task} {value:.2f}" for task, value in record.scores.items() if value is not None)
        self.say(f"{trial}: {record.error or scores}")

    def _drawn(self, trial: Trial) -> Path | None:
        """The folder for the pictures of a trial, if it has any."""
        wanted = self.pictures and (trial.split, trial.seed) == ("test", self.bench.seeds[0])
        return trial.folder(self.folder / "pictures") if wanted else None

    def record(self, trial: Trial) -> Record | None:
        """What a trial gave, if it was made with the configuration that it has now."""
        return self.records.get(trial, self.identity)

    def identity(self, trial: Trial) -> str:
        """sha256 of all that `mtpeft train` would be told to make a trial, places of one machine apart."""
        return self._config(trial)[0]

    def config_of(self, trial: Trial) -> Config:
        """What `mtpeft train` would be told to make a trial."""
        return self._config(trial)[1]

    def _config(self, trial: Trial) -> tuple[str, Config]:
        if trial not in self.configs:
            config = self._resolved(trial)
            identity = identity_of(config, self.recipe.resolve().parent)
            output = replace(config.output, dir=str(trial.run_folder(self.folder / "work", identity)))
            self.configs[trial] = identity, replace(config, output=output)
        return self.configs[trial]

    def _resolved(self, trial: Trial) -> Config:
        """Without the folder."""
        settings = [*self.settings, f"evaluate_on={trial.split}"]
        if trial.lr is not None:
            settings.append(f"optimizer.lr={trial.lr!r}")
            if self.config.optimizer.head_lr is None:
                settings.append(f"optimizer.head_lr={_rounded(trial.lr / self._factor(trial.method))!r}")
        if self.bench.refit and trial.split == "test":
            settings.append('train_on=["train", "val"]')
        flags = {"--method": trial.method, "--seed": trial.seed}
        config = split_classes(load_trial(self.recipe, settings, flags))
        tasks = {name: task for name, task in config.tasks.items() if trial.task in (name, TOGETHER)}
        return replace(config, tasks=tasks, output=replace(config.output, dir="", save_every=0))

    def _trained(self, trial: Trial) -> Path | None:
        """The run that chose a trial's learning rate, where its weights are to be tested and are still there."""
        chosen = self.choice(trial.method, trial.task)
        if trial.split == "val" or self.bench.refit or chosen is None or chosen.best.seed != trial.seed:
            return None
        folder = Path(self.config_of(chosen.best).output.dir)
        return folder if (folder / "results.json").exists() else None

    def _work(self, method: str, task: str) -> Path:
        return Trial(method, task, None, 0, "val").folder(self.folder / "work")

    def candidates(self, method: str, task: str) -> list[Trial]:
        """The trials among which validation chooses; none without learning rates to choose from."""
        factor, seed = self._factor(method), self.bench.seeds[0]
        return [Trial(method, task, _rounded(rate * factor), seed, "val") for rate in self.bench.learning_rates]

    def _factor(self, method: str) -> float:
        return self.bench.rate_factors.get(method, 1.0)

    def choice(self, method: str, task: str) -> ChosenRate | None:
        """The best candidate on validation, over all its tasks; None while not all were tried, or where all failed."""
        tried = {trial: self.record(trial) for trial in self.candidates(method, task)}
        found = {trial: record for trial, record in tried.items() if record is not None}
        good = [trial for trial, record in found.items() if not record.error]
        if len(found) < len(tried) or not good:
            return None
        best, *others = good
        for other in others:
            best = other if improvement(self._signed(found[best]), self._signed(found[other])) > 0 else best
        return ChosenRate(found, best)

    def _signed(self, record: Record) -> dict[str, float]:
        """The scores that are defined, higher is better."""
        return {task: self.signs[task] * value for task, value in record.scores.items() if value is not None}

    def test(self, method: str, task: str, seed: int) -> Trial | None:
        """The trial whose score is reported; None while its learning rate is not chosen."""
        if not self.bench.learning_rates:
            return Trial(method, task, None, seed, "test")
        chosen = self.choice(method, task)
        return Trial(method, task, chosen.best.lr, seed, "test") if chosen else None

    def tested(self, method: str, task: str) -> list[tuple[Trial, Record]]:
        """The reported trials that were made, by seed; with the costs of the training that was tested."""
        trials = [self.test(method, task, seed) for seed in self.bench.seeds]
        made = [(trial, self.record(trial)) for trial in trials if trial is not None]
        return [(trial, self._with_costs(trial, record)) for trial, record in made if record is not None]

    def errors(self, method: str, task: str) -> list[str]:
        """Why trials of a method on a task have no score."""
        trials = [*self.candidates(method, task), *(self.test(method, task, seed) for seed in self.bench.seeds)]
        found = [self.record(trial) for trial in trials if trial is not None]
        return [record.error for record in found if record is not None and record.error]

    def _with_costs(self, trial: Trial, record: Record) -> Record:
        chosen = self.choice(trial.method, trial.task)
        if record.costs or record.error or chosen is None:
            return record
        trained = chosen.tried[chosen.best]
        return replace(record, costs=trained.costs, seconds=trained.seconds, memory_bytes=trained.memory_bytes)

    def leading(self) -> list[str]:
        """The methods that get all seeds: the best by their mean rank on validation; all where ``top`` is 0."""
        if not self.bench.top:
            return list(self.methods)
        places = {method: [self._place(method, task) for task in self.tasks] for method in self.methods}
        return sorted(self.methods, key=lambda method: mean(places[method]))[: self.bench.top]

    def _place(self, method: str, task: str) -> int:
        """How many methods are better on validation; all of them, where it has no score."""
        scores = {other: self._signed(c.tried[c.best]) for other in self.methods if (c := self.choice(other, task))}
        if method not in scores:
            return len(self.methods)
        return sum(improvement(scores[method], score) > 0 for score in scores.values())

    def missing(self) -> list[str]:
        """What is neither in the table nor failed, in words: a method's tasks of each seed."""
        gaps: dict[tuple[str, int], list[str]] = {}
        first = self.bench.seeds[0]
        complete = not any(self._next(method, task, first) for method in self.methods for task in self.tasks)
        leading = self.leading() if complete else []
        for method in self.methods:
            wanted = self.bench.seeds if method in leading else (first,)
            for task, seed in product(self.tasks, wanted):
                if self._next(method, task, seed):
                    gaps.setdefault((method, seed), []).append(task)
        return [f"{method}, seed {seed}: {', '.join(tasks)}" for (method, seed), tasks in gaps.items()]


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
