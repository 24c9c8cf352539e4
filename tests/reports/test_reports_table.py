"""One table, four ways to draw it."""

from __future__ import annotations

from html.parser import HTMLParser
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mtpeft.names import visible
from mtpeft.reports.pages import render_page
from mtpeft.reports.table import Table

CELL = st.text(max_size=12)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), max_size=4)


class Cells(HTMLParser):
    """The text of each cell, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1] in ("td", "th") and self.rows[-1]:
            self.rows[-1][-1] += data.rstrip("\n")


@given(ROWS)
def test_html_holds_the_cells_and_no_tag_of_theirs(rows):
    table = Table(["a", "b", "c"], rows=rows)
    parsed = Cells(table.__html__())
    assert parsed.rows == [["a", "b", "c"], *([visible(cell) for cell in row] for row in rows)]
    assert set(parsed.tags) == {"div", "table", "tr", "th"} | ({"td"} if rows else set())


@given(ROWS)
def test_plain_has_a_line_for_each_row_and_nothing_hidden(rows):
    lines = Table(["a", "b", "c"], rows=rows).render().split("\n")
    assert len(lines) == len(rows) + 2
    assert all(visible(line) == line for line in lines)


@given(ROWS)
def test_markdown_has_a_cell_for_each_value(rows):
    lines = Table(["a", "b", "c"], rows=rows).markdown()
    assert len(lines) == len(rows) + 2 and all("\n" not in line for line in lines)
    assert all(line.replace(r"\|", "").count("|") == 4 for line in lines)


def test_words_stand_left_and_numbers_right():
    table = Table(["task", "value"], rows=[["a", "1.00"], ["longer", "10.00"]])
    assert table.render().split("\n") == ["task    value", "------  -----", "a        1.00", "longer  10.00"]
    assert table.markdown()[1] == "| --- | --: |"
    assert table.__html__().count('class="number"') == 3
    console = Console(file=StringIO(), force_terminal=True, width=40, no_color=True)
    assert [line.split()[-1] for line in table.render(console).split("\n")[-2:]] == ["1.00", "10.00"]


def test_rich_reads_no_markup_in_cells():
    console = Console(file=StringIO(), force_terminal=True, width=60, no_color=True)
    assert "[bold]x[/]" in Table(["a"], rows=[["[bold]x[/]"]]).render(console)


def test_a_page_is_one_file_for_day_night_and_phone():
    page = render_page(
        "data.html", title="<t>", type="cls", errors={"<e>": "h"}, warnings={}, counts=Table(["<c>"]), stanza="a\n<s>",
        samples={"train": [("<n>\u202e", "AAAA")]},
    )  # fmt: skip
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert "http" not in page and "<script" not in page and "@import" not in page
    for letter in "tecn":
        assert f"&lt;{letter}&gt;" in page and f"<{letter}>" not in page
    assert "a\n&lt;s&gt;" in page and r"\u202e" in page
