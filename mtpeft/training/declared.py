"""Holding a run to what its methods declare, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtpeft.config import Config
from mtpeft.errors import UsageError
from mtpeft.peft.method import Method


def check_declarations(config: Config, methods: Mapping[str, Method], inherited: Sequence[str]) -> None:
    """Refuse tasks that a method does not serve, and tasks added to a method that had to know how many there will be.

    Args:
        methods: label -> configured method.
        inherited: tasks that another run trained and this one does not.

    Raises:
        UsageError: for the first method whose declarations do not fit.
    """
    for label, method in methods.items():
        declares = method.declares
        for name, task in config.tasks.items():
            if declares.accepts and task.type not in declares.accepts:
                message = f'task "{name}" is of type {task.type}, and {label} serves {", ".join(declares.accepts)}'
                raise UsageError(message, hint=f"choose another method, or leave {name} out")
        if declares.needs_task_count and inherited:
            message = f"{label} must know from the first stage on how many there will be, and --from adds to them"
            raise UsageError(message, hint="train all tasks in one run, or choose another method")
