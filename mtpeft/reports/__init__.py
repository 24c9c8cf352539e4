"""What people read of a run, and of data. Pure Python, no torch."""

from mtpeft.reports.data import render_data
from mtpeft.reports.text import compare, render, summary_json

__all__ = ["compare", "render", "render_data", "summary_json"]
