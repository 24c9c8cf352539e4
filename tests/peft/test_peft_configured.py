"""From one line to methods: the same from Python, a recipe and ``mtpeft count``."""

from __future__ import annotations

import pytest

from mtpeft.config import Overrides, load, load_methods
from mtpeft.errors import UsageError
from mtpeft.peft.configured import as_methods, build_methods

LINE = "lora@task+adaptformer+lora@shared"


def test_one_line_is_the_same_methods_everywhere() -> None:
    made = as_methods(LINE)
    assert [(label, type(method).__name__, method.scope) for label, method in made] == [
        ("lora", "Lora", "task"), ("adaptformer", "Adaptformer", "shared"), ("lora-2", "Lora", "shared"),
    ]  # fmt: skip
    for config in (load_methods(LINE), load(None, Overrides({"--tasks": "cls", "--method": LINE}))):
        assert build_methods(config) == made


def test_methods_that_are_made_stay_what_they_are() -> None:
    ((_, lora),) = as_methods("lora")
    assert as_methods(lora) == [("lora", lora)]
    assert as_methods([("mine", lora)]) == [("mine", lora)]


@pytest.mark.parametrize(
    ("text", "message"),
    [("lorra", 'no method "lorra"'), ("lora@", "is not METHOD"), ("lora@everyone", "methods.lora.scope")],
)
def test_what_names_no_method_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_methods(text)
