"""One table, drawn by rich in a terminal and aligned with spaces elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
        rule = ["---" if i < self.words else "--:" for i in range(len(self.headings))]
        return ["| " + " | ".join(line) + " |" for line in [self.headings, rule, *self.rows]]

    def _plain(self) -> str:
        widths = [max(len(line[i]) for line in [self.headings, *self.rows]) for i in range(len(self.headings))]
        lines = [self.headings, ["-" * width for width in widths], *self.rows]
        return "\n".join(self._line(line, widths) for line in lines)

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

        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for i, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="left" if i < self.words else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        with console.capture() as capture:
            console.print(table)
        return capture.get().strip("\n")
