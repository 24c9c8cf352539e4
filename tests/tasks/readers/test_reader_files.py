"""What lists and annotations name stays inside the data's folder."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.api import DataError
from mtpeft_tasks.readers import files


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a b é.png").touch()
    (tmp_path / "secret.png").touch()
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["a b é.png", "./a b é.png", "sub/../a b é.png", "../data/a b é.png"])
def test_a_name_below_the_root(root, name):
    assert files.inside(root, name, "list") == root / name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../secret.png", 'entry 3: "../secret.png" is outside of the data'),
        ("sub/../../secret.png", "is outside of the data"),
        ("../missing.png", "is outside of the data"),
        ("/etc/passwd", "is outside of the data"),
        ("C:\\\\Windows\\\\a.png", "is outside of the data"),
        ("c.png", 'there is no file "c.png"'),
        ("a b é.png/c.png", "there is no file"),
        ("", "names no file"),
        ("a\0.png", "cannot be opened: embedded null byte"),
        ("a" * 5000, "cannot be opened: File name too long"),
    ],
)
def test_a_name_that_is_refused(root, name, message):
    with pytest.raises(DataError, match=message) as caught:
        files.inside(root, name, '"train.txt", entry 3')
    assert caught.value.message.startswith('"train.txt", entry 3') and caught.value.hint


def test_links_are_followed_unless_they_loop_or_lead_out(root):
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "away").symlink_to(root.parent)
    assert files.inside(root, "link.png", "list").is_file()
    for name in ("loop.png", "sub/../loop.png"):
        with pytest.raises(DataError, match=r'loop.png" cannot be opened: .*'):
            files.inside(root, name, "list")
    with pytest.raises(DataError, match="outside of the data"):
        files.inside(root, "away/../secret.png", "list")


@given(st.lists(st.sampled_from(["..", ".", "sub", "secret.png", "x", "~", "..."])).map("/".join))
def test_no_name_leaves_the_root(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("parts") / "data"
    (root / "sub").mkdir(parents=True)
    (root.parent / "secret.png").touch()
    with suppress(DataError):
        assert files.inside(root, name, "list").resolve().is_relative_to(root)


def test_reasons_are_one_sentence_and_never_nothing():
    """The cause says more than what was raised over it."""
    given = [
        (OSError("a\nb. c"), "a b"), (KeyError("ape"), "KeyError 'ape'"), (AssertionError(), "AssertionError"),
        (ValueError(), "ValueError"), (ValueError("no"), "no"),
    ]  # fmt: skip
    assert [files.reason(error) for error, _ in given] == [said for _, said in given]
    outer = RuntimeError("something went wrong")
    outer.__cause__ = OSError("the file is cut")
    assert files.reason(outer) == "the file is cut"
