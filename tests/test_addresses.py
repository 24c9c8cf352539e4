"""The small languages: each text is read and written the same, and read in one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.addresses import DataAddress, MethodAddress, MethodTerm, ParameterKey, TaskTerm, free_label
from mtpeft.errors import MtpeftError, UsageError

READERS = st.from_regex(r"\A[A-Za-z][\w.-]{0,8}\Z")
PATHS = st.text(st.sampled_from("ab/.~ ?=&@:%235Fé日\\+"), min_size=1, max_size=12) | st.text(min_size=1, max_size=8)
NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z")


@given(READERS, PATHS, st.text(max_size=8))
def test_data_reads_back_as_it_was_written(reader: str, path: str, query: str) -> None:
    """Whatever the path: with spaces, question marks, colons, quotes of quotes."""
    address = DataAddress(reader, path, query)
    assert DataAddress.parse(str(address)) == address
    assert str(DataAddress.parse(str(address))) == str(address)


@given(READERS, PATHS.filter(lambda path: "?" not in path), st.text(min_size=1, max_size=8))
def test_a_text_is_written_back_as_it_was_read(reader: str, path: str, query: str) -> None:
    for text in (f"{reader}:{path}", f"{reader}:{path}?{query}"):
        assert str(DataAddress.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "path", "options"),
    [
        ("folder:my pets", "my pets", ()),
        ("folder:C:/pets", "C:/pets", ()),
        ("folder:50%/a=b@c", "50%/a=b@c", ()),
        ("folder:what%3F?a=1", "what?", (("a", "1"),)),
        ("folder:what%253F", "what%3F", ()),
        ("folder:100%25", "100%25", ()),
        ("folder:x?b=2&a=1", "x", (("b", "2"), ("a", "1"))),
        ("folder:x?a=b+c%26d&e=", "x", (("a", "b c&d"), ("e", ""))),
        ("folder:x?a=1?2=3", "x", (("a", "1?2=3"),)),
        ("hub:hf://beans", "hf://beans", ()),
    ],
)
def test_data(text: str, path: str, options: tuple) -> None:
    address = DataAddress.parse(text)
    assert (address.path, address.options, str(address)) == (path, options, text)


@pytest.mark.parametrize("text", ["", "pets", ":pets", "folder:", "folder:?a=1", "data/pets:1", "a b:c", "x?y:z"])
def test_what_is_no_data(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f'tasks.a.data = "{text}" is not READER:PATH')) as caught:
        DataAddress.parse(text, "tasks.a.data")
    assert "mtpeft tasks" in caught.value.hint


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="gives a twice"):
        _ = DataAddress.parse("folder:x?a=1&b=2&a=3").options


@given(st.text(st.sampled_from("ab/.@?% "), min_size=1, max_size=8) | st.just("./a@b"))
def test_a_path_moves_to_another_base_and_back(path: str) -> None:
    base = Path("/nowhere/recipes")
    absolute = DataAddress("folder", path).resolved(base)
    assert absolute.resolved(Path("/other")) == absolute
    assert absolute.relative_to(base).resolved(base) == absolute
    moved = absolute.relative_to(base).path
    assert str(base) not in moved and not moved.startswith("/")


def test_a_url_has_no_base_and_a_name_stays_before_its_path(tmp_path: Path) -> None:
    url = DataAddress.parse("hub:hf://beans")
    assert url.resolved(tmp_path) == url.relative_to(tmp_path) == url
    named = DataAddress.parse("torchvision:CIFAR100@data")
    assert named.resolved(tmp_path).path == f"CIFAR100@{tmp_path}/data"
    assert named.resolved(tmp_path).relative_to(tmp_path) == named


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-this-name/x"])
def test_what_no_file_system_takes_is_refused_in_words(path: str) -> None:
    with pytest.raises(UsageError, match="is no path"):
        DataAddress("folder", path).resolved(Path("/"))


@given(st.lists(st.builds(MethodTerm, NAMES, st.sampled_from(["", "shared", "task"])), min_size=1, max_size=4))
def test_methods_read_back_as_they_were_written(terms: list[MethodTerm]) -> None:
    address = MethodAddress(tuple(terms))
    assert MethodAddress.parse(str(address)) == address
    assert MethodAddress.parse(str(address).replace("+", " + ").replace("@", " @ ")) == address


@pytest.mark.parametrize("text", ["", "+", "lora+", "lora@", "@task", "lora@a@b", "lora++ssf"])
def test_what_is_no_method(text: str) -> None:
    with pytest.raises(UsageError, match="is not METHOD or METHOD@SCOPE"):
        MethodAddress.parse(text)


@given(st.lists(st.sampled_from(["lora", "lora-2", "ssf", "lora-2-2"]), max_size=8))
def test_labels_are_their_own(names: list[str]) -> None:
    labels: list[str] = []
    for name in names:
        labels.append(free_label(name, labels))
    assert len(set(labels)) == len(names) and all(map(str.startswith, labels, names))


@given(NAMES, st.none() | st.tuples(NAMES, st.none() | PATHS.map(str.strip).filter(bool)))
def test_tasks_read_back_as_they_were_written(name: str, more: tuple[str, str | None] | None) -> None:
    kind, data = more or ("", None)
    term = TaskTerm(name, kind, f"folder:{data}" if data else "")
    assert TaskTerm.parse(str(term)) == term


@given(st.sampled_from(["part", "head", "balancer"]), NAMES, st.text(st.sampled_from("ab./:"), min_size=1, max_size=9))
def test_parameters_read_back_as_they_were_written(kind, owner: str, tensor: str) -> None:
    named = ParameterKey(kind, owner, "" if kind == "balancer" else tensor)
    assert ParameterKey.parse(str(named)) == named


def test_parameters() -> None:
    named = ParameterKey.parse("head/lora-2/blocks.0.attn.q/A")
    assert (named.kind, named.owner, named.method) == ("part", "head", "lora-2"), "a task may be called head"
    named = ParameterKey.parse("head:a:b/weight")
    assert (named.kind, named.owner, named.tensor, named.method) == ("head", "a:b", "weight", "")
    with pytest.raises(MtpeftError, match="names no parameter"):
        ParameterKey.parse("tail:a/weight")


SOURCES = sorted((Path(__file__).parents[1] / "mtpeft").rglob("*.py"))
OTHERS = {
    ("training/setup.py", ":"): "cuda:0",
    ("kinds.py", ":"): "module:attribute",
    ("plugins.py", ":"): "module:attribute",
    ("config.py", ":"): "module:attribute",
    ("peft/contents.py", ":"): "module:attribute",
    ("backbone/__init__.py", ":"): "hf-hub:name",
}
"""Other languages that use one of the marks, and which."""


CUTS = ("partition", "rpartition", "split", "rsplit", "startswith", "removeprefix")


def taken_apart(path: Path) -> set[str]:
    """The marks at which a file takes texts apart, or by which it tells them apart."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            found |= {getattr(node.args[0], "value", "")} if node.func.attr in CUTS else set()
        if (
            isinstance(node, ast.Compare)
            and isinstance(node.ops[0], ast.In | ast.NotIn)
            and isinstance(node.left, ast.Constant)
        ):
            found.add(node.left.value)
    return found & {":", "?", "@", "+", "head:", "balancer:", "[+@]"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_other_file_takes_these_languages_apart(path: Path) -> None:
    name = path.relative_to(SOURCES[0].parents[0]).as_posix()
    if name != "addresses.py":
        assert {mark for mark in taken_apart(path) if (name, mark) not in OTHERS} == set()


def test_the_rule_sees_a_parser_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text('a = x.partition("@")[0]\nb = ":" in x\nc = [i for i in x if not i.startswith("head:")]\n')
    assert taken_apart(path) == {"@", ":", "head:"}
