"""The contract with plugins: every hook on one page.

A plugin is a module (or object) named by an entry point of the group ``mtpeft``. It implements any of these with
``@mtpeft.api.hookimpl``. Registration is lazy: ids map to ``"package.module:Class"`` strings, so that the entry module
imports no torch.

Example (``pyproject.toml`` of a plugin)::

    [project.entry-points.mtpeft]
    mymethod = "mtpeft_mymethod"

Example (``mtpeft_mymethod/__init__.py``)::

    from mtpeft.api import hookimpl

    @hookimpl
    def register_methods():
        return {"my-method": "mtpeft_mymethod.method:MyMethod"}
"""

# mypy: disable-error-code="empty-body"
# A specification has no body.
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("mtpeft")
hookimpl = pluggy.HookimplMarker("mtpeft")

API_VERSION = 1
"""A plugin may set ``mtpeft_api = 1`` in its entry module; one built for another version is refused."""


@hookspec
def register_methods() -> Mapping[str, str]:
    """``{id: "package.module:Class"}`` of `mtpeft.api.Method` subclasses."""


@hookspec
def register_tasks() -> Mapping[str, str]:
    """``{type: "package.module:Class"}`` of `mtpeft.api.Task` subclasses."""


@hookspec
def register_heads() -> Mapping[str, str]:
    """``{"KIND/NAME": "package.module:Class"}`` of `mtpeft.api.Head` subclasses that a task type finds by name.

    ``KIND`` says for which task types: each type takes heads of some kinds, such as ``det/NAME`` or ``pixels/NAME``.
    ``head = {name = "NAME", ...}`` in a recipe makes ``Class(info, classes, ...)``; its keyword-only parameters are the
    settings.
    """


@hookspec
def register_readers() -> Mapping[str, str]:
    """``{name: "package.module:Class"}`` of `mtpeft.api.Reader` subclasses: what ``READER:PATH?option=value`` names."""


@hookspec
def register_schedules() -> Mapping[str, str]:
    """``{name: "package.module:Class"}`` of `mtpeft.api.Schedule` subclasses."""


@hookspec
def register_balancers() -> Mapping[str, str]:
    """``{name: "package.module:Class"}`` of `mtpeft.api.Balancer` subclasses."""


@hookspec
def register_loggers() -> Mapping[str, str]:
    """``{name: "package.module:Class"}`` of `mtpeft.api.Logger` subclasses."""


@hookspec
def register_optimizers() -> Mapping[str, str]:
    """``{name: "package.module:Class"}`` of `mtpeft.api.Optimizer` subclasses."""


@hookspec
def register_exporters() -> Mapping[str, str]:
    """``{name: "package.module:Class"}`` of `mtpeft.api.Exporter` subclasses: what ``mtpeft export --to`` names."""


@hookspec
def register_backbones() -> Mapping[str, str]:
    """``{name: "package.module:function"}``: ``function(image_size, pretrained) -> nn.Module``, a model like timm's.

    ``image_size`` is (height, width) or None; the module carries a ``pretrained_cfg`` where it has one.
    """


@hookspec
def run_started(run: Any) -> None:
    """A run's folder, host and tasks are ready; nothing is trained yet."""


@hookspec
def stage_ended(run: Any, stage: int, tasks: tuple[str, ...]) -> None:
    """A stage ended and its tasks were evaluated."""


@hookspec
def step_ended(run: Any, stage: int, step: int, losses: Mapping[str, float]) -> None:
    """One optimizer step was made."""


@hookspec
def run_ended(run: Any) -> None:
    """The run is complete; results are on disk."""
