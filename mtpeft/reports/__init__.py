"""What people read of a run. Pure Python, no torch."""

from mtpeft.reports.text import compare, render, summary_json

__all__ = ["compare", "render", "summary_json"]
