"""HTML pages: one template for all, self-contained, light and dark, readable on a phone."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from mtpeft.names import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(template: str, **values: Any) -> str:
    """A template of this room with its values; texts are made visible and escaped, what has ``__html__`` is HTML."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("mtpeft.reports"),
        autoescape=True,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalized(value: Any) -> Any:
    """Every value on its way into a page. Templates break texts of several lines themselves."""
    return visible(value) if type(value) is str else value
