"""Numbers as people read them; ``-`` for what is undefined."""

from __future__ import annotations

UNDEFINED = "-"


def native(value: float | None, unit: str) -> str:
    """A metric's value: two decimals in percent, else four digits."""
    if value is None:
        return UNDEFINED
    return f"{value:.2f}" if unit == "%" else f"{value:.4g}"


def percent(value: float | None) -> str:
    return native(value, "%")


def whole(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:,.0f}"


def compact(value: int) -> str:
    """A count: whole below a million, else in millions."""
    return whole(value) if value < 10**6 else f"{value / 10**6:,.1f} M"


def duration(seconds: float | None) -> str:
    """``12.3 s``, ``4 min 05 s`` or ``2 h 03 min``."""
    if seconds is None:
        return UNDEFINED
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def size(count: int | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    if count is None:
        return UNDEFINED
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def shorten(name: str, width: int) -> str:
    """The name with its middle left out where it is longer than ``width``."""
    if len(name) <= width:
        return name
    keep = width - 2
    return f"{name[: keep - keep // 2]}..{name[len(name) - keep // 2 :]}"
