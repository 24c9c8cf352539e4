"""What the core brings itself, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Mapping

from mtpeft.hookspecs import hookimpl


@hookimpl
def register_schedules() -> Mapping[str, str]:
    from mtpeft.schedule import builtin

    return builtin


@hookimpl
def register_backbones() -> Mapping[str, str]:
    return {"micro": "mtpeft.backbone.micro:micro"}
