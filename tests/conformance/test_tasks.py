"""Every registered task type passes the kit."""

from __future__ import annotations

import pytest

from mtpeft.plugins import registry
from mtpeft.testing import check_task


@pytest.mark.parametrize("task", sorted(registry("tasks")))
def test_conformance(task: str) -> None:
    check_task(task)
