"""Starting from another run: its parts, heads, tasks and results are taken over, and its tasks stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from mtpeft.config import Config
from mtpeft.config import load as load_config
from mtpeft.errors import DataError, UsageError
from mtpeft.evaluation import ResultMatrix
from mtpeft.training.manifest import Manifest, Origin, data_changes
from mtpeft.training.run import Run
from mtpeft.training.run_files import read_results
from mtpeft.training.setup import find_adapter


@dataclass
class Inheritance:
    """What a run takes over from another.

    Attributes:
        folder: of the other run; empty for a run that starts from nothing.
        tasks: those of the other run that this one does not train: their parts and heads are frozen.
        stages: number of stages made before.
    """

    folder: str = ""
    tasks: tuple[str, ...] = ()
    stages: int = 0
    before: Config | None = field(default=None, repr=False)
    matrix: ResultMatrix | None = field(default=None, repr=False)
    manifest: Manifest | None = field(default=None, repr=False)

    @staticmethod
    def of(folder: Path, config: Config) -> Inheritance:
        """What a run of ``config`` takes over from the run in ``folder``.

        Raises:
            UsageError: if they have other methods, another backbone, or a task of one name and two types.
        """
        find_adapter(folder)
        before = load_config(folder / "config.toml")
        for name in ("methods", "backbone", "backbone_options", "weights", "image_size", "normalization"):
            if getattr(before, name) != getattr(config, name):
                hint = f"what is trained already needs the same methods and backbone: {folder / 'config.toml'} has them"
                raise UsageError(f'{name} is not what the run "{folder}" has', hint=hint)
        for name in config.tasks.keys() & before.tasks.keys():
            if config.tasks[name].type != before.tasks[name].type:
                message = f'task "{name}" is of another type in "{folder}"'
                raise UsageError(message, hint="give the new task another name")
        matrix, manifest = read_results(folder), Manifest.read(folder)
        kept = tuple(name for name in before.tasks if name not in config.tasks)
        return Inheritance(str(folder), kept, len(matrix.stages), before, matrix, manifest)

    def merge(self, config: Config) -> Config:
        """The configuration with the tasks taken over in front."""
        if self.before is None:
            return config
        return replace(config, tasks={**self.before.tasks, **config.tasks})

    def give(self, run: Run) -> None:
        """Hand everything over to a run just built.

        Raises:
            DataError: if the data of a task that is not trained again has changed: its results would not compare.
        """
        changes = data_changes(self.manifest, run) if self.manifest else {}
        for name in self.tasks:
            if name in changes:
                raise DataError(changes[name], hint=f'put the data back as it was when "{self.folder}" was trained')
        run.caveats += list(changes.values())
        if self.matrix is not None:
            run.restore(find_adapter(Path(self.folder)))
            run.matrix = self.matrix.continued(run.matrix.tasks, run.matrix.stages)
            for name in self.tasks:
                run.host.freeze(name)  # nothing moves what the tasks taken over own

    @property
    def origin(self) -> Origin:
        return Origin(self.folder, self.tasks, self.stages)

    @staticmethod
    def again(folder: Path, config: Config, source: Path | None) -> tuple[Inheritance, Config]:
        """What the run in ``folder`` took over when it was started, and its configuration with those tasks.

        Raises:
            MtpeftError: if its manifest is damaged.
            UsageError: if ``source`` is another run.
        """
        origin = Manifest.read(folder).origin
        if source is not None and (not origin.run or source.resolve() != Path(origin.run).resolve()):
            message = f'"{folder}" was started from {origin.run or "no other run"}, and not from "{source}"'
            raise UsageError(message, hint="resume it without --from, or give another --out")
        before = load_config(folder / "config.toml").tasks
        lacking = {name: before[name] for name in origin.tasks if name in before and name not in config.tasks}
        return Inheritance(origin.run, origin.tasks, origin.stages), replace(config, tasks=lacking | config.tasks)
