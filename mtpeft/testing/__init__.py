"""The conformance kit that plugin authors run too: `check_method`, `check_task`, the zoo."""

from __future__ import annotations

from mtpeft.testing.case import Case, CheckFailed
from mtpeft.testing.checks import Check, check_method, method_checks, parametrize_with_checks
from mtpeft.testing.tasks import check_task
from mtpeft.testing.zoo import zoo

__all__ = [
    "Case",
    "Check",
    "CheckFailed",
    "check_method",
    "check_task",
    "method_checks",
    "parametrize_with_checks",
    "zoo",
]
