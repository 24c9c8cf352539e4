"""HTML pages: one template for all, self-contained, light and dark, readable on a phone."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from mtpeft.names import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(template: str, **values: Any) -> str:
    """A template of this room with its values, which are made visible and escaped; the result is safe HTML."""
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(values))


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
    """Every value on its way into a page; what is HTML already stays."""
    return visible(value) if type(value) is str else value
