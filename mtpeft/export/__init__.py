"""A trained task in the format of another tool; the exporters themselves are plugins."""

from mtpeft.export.base import Exported, Exporter

__all__ = ["Exported", "Exporter"]
