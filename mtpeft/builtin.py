"""What the core brings itself, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Mapping

from mtpeft.balancing import builtin as balancers
from mtpeft.hookspecs import hookimpl
from mtpeft.schedule import builtin as schedules


@hookimpl
def register_schedules() -> Mapping[str, str]:
    return schedules


@hookimpl
def register_balancers() -> Mapping[str, str]:
    return balancers


@hookimpl
def register_backbones() -> Mapping[str, str]:
    return {"micro": "mtpeft.backbone.micro:micro"}
