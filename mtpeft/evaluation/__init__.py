"""The account of what was learned, what was forgotten and what it cost. Pure Python, no torch."""

from mtpeft.evaluation.costs import Costs, Parameters
from mtpeft.evaluation.matrix import Cell, ResultMatrix, TaskRecord
from mtpeft.evaluation.summary import TaskSummary, summarize

__all__ = ["Cell", "Costs", "Parameters", "ResultMatrix", "TaskRecord", "TaskSummary", "summarize"]
