"""Whatever a recipe or flag says: a configuration, or one quick sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpeft.config import Overrides, load
from mtpeft.errors import UsageError
from mtpeft.settings import from_toml
from mtpeft.toml_text import parse_toml

SECONDS = 2.0
FLAGS = {"--tasks": "cls", "--method": "lora"}
DEEP = 100_000
LONG = ".".join("a" * 50_000)
BIG = "9" * 5_000


def refused(call: Callable[[], Any]) -> str:
    """The sentence; nothing else may be raised, and not late."""
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        call()
    assert time.process_time() - start < SECONDS
    assert len(caught.value.message) < 1_000 and "\n" not in caught.value.message
    return caught.value.message


RECIPES = {
    "lists": f"seed = {'[' * DEEP}{']' * DEEP}",
    "lists that end": f"seed = {'[' * 100}{']' * 100}",
    "tables": f"tasks = {'{a=' * DEEP}1{'}' * DEEP}",
    "tables that end": f"tasks = {'{a=' * 70}1{'}' * 70}",
    "number": f"seed = {BIG}",
    "hexadecimal number": f"seed = 0x{'f' * 5_000}",
    "number of 65 bits": f"seed = {2**64}",
    "key": f"{LONG} = 1",
    "key with spaces": f"{' . '.join('a' * 50_000)} = 1",
    "quoted key": ".".join(['"a"'] * 50_000) + " = 1",
    "literal key": ".".join(["'='"] * 50_000) + " = 1",
    "header": f"[{LONG}]",
    "array of tables": f"[[{LONG}]]",
    "inline table": f"schedule = {{ {LONG} = 1 }}",
    "inline table in a list": f"[[methods]]\nname = 'lora'\nx = [{{ {LONG} = 1 }}]",
    "behind a text": f'backbone = "a" \n{LONG} = 1',
    "behind a text of three quotes": f'backbone = """a\\"""" \n{LONG} = 1',
    "a NUL byte in a path": 'weights = "a\\u0000b"',
    "the home of nobody": 'cache = "~nobody-of-this-name/x"',
    "an escape": '"\\u001b[31m" = 1',
    "a name of a megabyte": f'"{"a" * 2**20}" = 1',
    "a text of a megabyte": f'seed = "{"a" * 2**20}"',
    "quotes that never end": '"""\n\\' * 30_000,
    "a lone quote each line": "a = '''\n" + "'\n" * 50_000,
}


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_a_hostile_recipe_is_one_quick_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    refused(lambda: load(path, Overrides(FLAGS)))


SET = {
    "key": f"{LONG}=1",
    "key of a method": f"methods.lora.{LONG}=1",
    "key in the value": f"schedule={{ {LONG} = 1 }}",
    "lists": f"seed={'[' * DEEP}{']' * DEEP}",
    "number": f"seed={BIG}",
    "hexadecimal number": f"seed=0x{'f' * 5_000}",
    "number of a method": f"methods.lora.rank={BIG}",
    "no text": "backbone=\udcff",
    "text of a megabyte": f"seed={'a' * 2**20}",
}


@pytest.mark.parametrize("item", SET.values(), ids=SET)
def test_a_hostile_setting_is_one_quick_sentence(item: str) -> None:
    refused(lambda: load(None, Overrides(FLAGS, [item])))


def test_dots_in_texts_and_comments_are_no_key() -> None:
    dots = ".".join("a" * 500)
    text = f'a = "{dots}" # {dots}\nb = \'\'\'\n{dots}\'\'\'\nc = ["""{dots}\\""""]\n"{dots}" = \'{dots}\'\n'
    assert parse_toml(text) == {"a": dots, "b": dots, "c": [f'{dots}"'], dots: dots}
    assert parse_toml("x = [" + "1.5, " * 500 + "]") == {"x": [1.5] * 500}


def test_a_value_is_one_value() -> None:
    assert from_toml("1\nother = 2") == "1\nother = 2", "the second would be lost"
    assert from_toml("[1, 2]") == [1, 2] and from_toml("a = b") == "a = b"


@pytest.mark.parametrize("tasks", ["Pets=cls,pets=cls", "pets=cls,other=det,PETS=seg"])
def test_tasks_that_differ_in_case_alone_are_refused(tasks: str) -> None:
    assert "differ in case alone" in refused(lambda: load(None, Overrides({"--tasks": tasks, "--method": "lora"})))


WORDS = [
    "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", '"', '"""', "'", "'''", "#", "\\", " ", "a", "1", "-", "1e9",
    "methods", "tasks", "schedule", "optimizer", "output", "bench", "loggers", "balance", "seed", "weights", "cache",
    "data", "name", "type", "true", "nan", "inf", "1979-05-27", "0x1f", "folder:x", "?", "@", "~", "\\u0000", "é",
    "\x00",
]  # fmt: skip
KEYS = st.sampled_from(
    ["methods", "tasks", "schedule", "optimizer", "bench", "loggers", "seed", "data", "name", "lr", ""]
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["folder:\0", "~x", ":"]),
)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
    ),
    max_size=5,
)
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=30).map("".join).map(str.encode),
    TREES.map(lambda tree: tomli_w.dumps(tree).encode()),
    st.binary(max_size=60),
    st.tuples(st.sampled_from(WORDS), st.integers(1, 3_000)).map(lambda pair: (pair[0] * pair[1]).encode()),
)


@given(TEXTS, st.sampled_from([{}, FLAGS]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_recipe_raises_anything_but_a_sentence(tmp_path: Path, text: bytes, flags: dict[str, str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text)
    start = time.process_time()
    try:
        load(path, Overrides(flags)).to_toml()
    except UsageError as error:
        assert "\n" not in error.message
    assert time.process_time() - start < SECONDS


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(["", "methods.lora.", "tasks.cls.", "optimizer."]))
def test_no_setting_raises_anything_but_a_sentence(key: str, value: str, table: str) -> None:
    try:
        load(None, Overrides(FLAGS, [f"{table}{key}={value}"])).to_toml()
    except UsageError as error:
        assert "\n" not in error.message


@given(st.sampled_from(["--tasks", "--method", "--schedule", "--weights"]), st.text(max_size=20))
def test_no_flag_raises_anything_but_a_sentence(flag: str, value: str) -> None:
    try:
        load(None, Overrides({**FLAGS, flag: value})).to_toml()
    except UsageError as error:
        assert "\n" not in error.message
