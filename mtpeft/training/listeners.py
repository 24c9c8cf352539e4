"""Plugins that listen to a training. What they raise is said once and never stops it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mtpeft.plugins import in_words, notify
from mtpeft.training.happenings import Happening, Listener, Remark, RunBegan, RunEnded, StageEnded, Updated
from mtpeft.training.loggers import Logger
from mtpeft.training.run import Run


class Observers:
    """Calls the observers' hooks of `mtpeft.hookspecs`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def tell(self, happening: Happening) -> None:
        match happening:
            case RunBegan():
                notify("run_started", run=self.run)
            case Updated(stage=stage, step=step, losses=losses):
                notify("step_ended", run=self.run, stage=stage, step=step, losses=losses)
            case StageEnded(stage=stage, tasks=tasks):
                notify("stage_ended", run=self.run, stage=stage, tasks=tasks)
            case RunEnded():
                notify("run_ended", run=self.run)

    def close(self) -> None: ...


class Loggers:
    """Hands every happening to loggers; one that raises, or ends the program, is named once and switched off.

    Args:
        loggers: by the name that the recipe gives them.
        listener: who is told of one that is switched off.
    """

    def __init__(self, loggers: Mapping[str, Logger], listener: Listener) -> None:
        self.loggers, self.listener = dict(loggers), listener

    def tell(self, happening: Happening) -> None:
        if isinstance(happening, RunBegan):
            self._each(lambda logger: logger.open(Path(happening.folder)))
        self._each(lambda logger: logger.log(happening.to_json()))

    def close(self) -> None:
        self._each(lambda logger: logger.close())
        self.loggers = {}

    def _each(self, call: Callable[[Logger], None]) -> None:
        """With ``MTPEFT_STRICT=1`` it raises what a logger raises."""
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except (Exception, SystemExit) as error:
                if os.environ.get("MTPEFT_STRICT") == "1":
                    raise
                del self.loggers[name]
                message = f'logger "{name}" raised and is switched off: {in_words(error)}'
                self.listener.tell(Remark(message, warning=True))
