"""The one table: plain, drawn by rich in a terminal, Markdown and HTML. Names of others are made harmless in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mtpeft.names import visible
from mtpeft.reports.pages import render_page

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Table:
    """Rows of text under headings; the first ``words`` columns are aligned left, the numbers after them right."""

    headings: Sequence[str]
    words: int = 1
    rows: list[Sequence[str]] = field(default_factory=list)

    def render(self, console: Console | None = None) -> str:
        """The table, no newline at its end; with colour only if ``console`` is a terminal."""
        return self._rich(console) if console is not None and console.is_terminal else self._plain()

    def markdown(self) -> list[str]:
        """The lines of a Markdown table."""
        headings, *rows = ([cell.replace("|", r"\|") for cell in line] for line in self.lines())
        rule = ["---" if i < self.words else "--:" for i in range(len(self.headings))]
        return ["| " + " | ".join(line) + " |" for line in [headings, rule, *rows]]

    def __html__(self) -> str:
        """A ``<table>``; a page's template takes it as it is: ``{{ table }}``."""
        return render_page("table.html", table=self)

    def lines(self) -> Iterator[list[str]]:
        """Headings and rows as they may be shown."""
        return ([visible(cell) for cell in line] for line in [self.headings, *self.rows])

    def _plain(self) -> str:
        headings, *rows = self.lines()
        widths = [max(len(line[i]) for line in [headings, *rows]) for i in range(len(headings))]
        return "\n".join(self._line(line, widths) for line in [headings, ["-" * width for width in widths], *rows])

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        aligned = [
            cell.ljust(width) if i < self.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    def _rich(self, console: Console) -> str:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        headings, *rows = self.lines()
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for i, heading in enumerate(headings):  # a name is copied from the first column: it is never cut
            table.add_column(
                Text(heading), justify="left" if i < self.words else "right", no_wrap=i == 0, overflow="fold"
            )
        for row in rows:
            table.add_row(*map(Text, row))
        with console.capture() as capture:
            console.print(table)
        return capture.get().strip("\n")
