"""A table of figures, as Markdown; the terminal and the HTML pages render its cells themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells that are ready to be read, and what belongs below them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Paragraphs below the table; ``**bold**`` is the only markup within."""
    title: str = ""
    text_columns: frozenset[str] = frozenset()
    """Columns that hold words, aligned left; all others hold numbers. The first column always holds words."""
    more: Sequence[Table] = ()
    """Tables that follow below the notes, each with its own."""

    def is_text(self, index: int) -> bool:
        """Whether the column of that index holds words."""
        return index == 0 or self.columns[index] in self.text_columns

    def markdown(self) -> str:
        """As Markdown: the title in bold, the table, the notes as paragraphs, further tables."""
        aligned = "".join("---|" if self.is_text(index) else "---:|" for index in range(len(self.columns)))
        lines = ["| " + " | ".join(self.columns) + " |", "|" + aligned]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        title = [f"**{self.title}**"] if self.title else []
        below = [table.markdown().rstrip("\n") for table in self.more]
        return "\n\n".join([*title, "\n".join(lines), *self.notes, *below]) + "\n"
