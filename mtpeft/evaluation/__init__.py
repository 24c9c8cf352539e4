"""The account of what was learned, what was forgotten and what it cost. Pure Python, no torch."""

from mtpeft.evaluation.costs import Costs, Parameters, StageCosts
from mtpeft.evaluation.matrix import ResultMatrix
from mtpeft.evaluation.record import TaskRecord
from mtpeft.evaluation.references import add_references
from mtpeft.evaluation.summary import TaskSummary, summarize

__all__ = [
    "Costs",
    "Parameters",
    "ResultMatrix",
    "StageCosts",
    "TaskRecord",
    "TaskSummary",
    "add_references",
    "summarize",
]
