"""Text formats of results: tables for a terminal, Markdown and LaTeX, and all numbers as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence

from vitrail.experiments.analysis.results import Numbers, Results, number
from vitrail.experiments.analysis.statistics import Estimate
from vitrail.experiments.report.page import PageTable
from vitrail.experiments.report.tables import Heading, Number, Table, size_text

ARROWS = {"up": " ↑", "down": " ↓", "none": ""}
GAP = 2  # characters between two columns of a terminal's table
WIDEST = 44  # characters of a cell, above which it is wrapped
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "–": "--",
}  # fmt: skip
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # first characters of cells that a spreadsheet evaluates
LATEX_ARROWS = {"up": r" $\uparrow$", "down": r" $\downarrow$", "none": ""}
LATEX_HEAD = "% needs \\usepackage{booktabs}\n"


def notes_of(table: Table, mark: str) -> list[str]:
    """Return the notes below a table, first the legend of marked numbers.

    Args:
        table: The table.
        mark: How the format shows marked numbers, e.g. "Bold".
    """
    marked = any(isinstance(cell, Number) and cell.marked for row in table.rows for cell in row)
    return [*([f"{mark}: {table.mark}."] if marked and table.mark else []), *table.notes]


def plain(cell: str | Number) -> str:
    """Return a cell as plain text; marked numbers end with "*", others with a space, so that columns align."""
    if isinstance(cell, str):
        return cell
    return f"{cell.text}{' ' * bool(cell.interval)}{cell.interval}{'*' if cell.marked else ' '}"


def head_of(heading: Heading, arrows: dict[str, str]) -> str:
    """Return a column's name with an arrow in the preferred direction."""
    return heading.name + arrows[heading.better]


def parts_of(heads: Sequence[str], texts: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """Split a wide table into parts that fit a terminal; the first column is in every part.

    Args:
        heads: Heads of the columns.
        texts: Cells of each row.
        width: Of the terminal, in characters.

    Returns:
        Column indices of each part.
    """
    widths = [min(WIDEST, max(len(text) for text in column)) + GAP for column in zip(heads, *texts, strict=True)]
    part, used = [0], widths[0]
    for column in range(1, len(heads)):
        if used + widths[column] > width + GAP and len(part) > 1:
            yield part
            part, used = [0], widths[0]
        part.append(column)
        used += widths[column]
    yield part


def as_page_table(table: Table) -> PageTable:
    """Convert a table for the HTML page; marked numbers are bold."""
    best = [
        (y, x)
        for y, row in enumerate(table.rows)
        for x, cell in enumerate(row)
        if isinstance(cell, Number) and cell.marked
    ]
    rows = [tuple(plain(cell).rstrip("* ") if isinstance(cell, Number) else cell for cell in row) for row in table.rows]
    return PageTable(
        title=table.title,
        header=[head_of(heading, ARROWS) for heading in table.head],
        rows=rows,
        best=best,
        note=" ".join(notes_of(table, "Bold")),
    )


def as_markdown(table: Table) -> str:
    """Format a table as Markdown under its title; marked numbers are bold."""
    lines = [[escaped_markdown(head_of(heading, ARROWS)) for heading in table.head]]
    lines.append(["---", *["---" if _is_words(table, column) else "---:" for column in range(1, len(table.head))]])
    lines += [[_markdown(cell) for cell in row] for row in table.rows]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n{escaped_markdown(note)}\n" for note in notes_of(table, "Bold"))
    return f"## {escaped_markdown(table.title)}\n\n{grid}\n{notes}"


def _is_words(table: Table, column: int) -> bool:
    return column > 1 and all(isinstance(row[column], str) for row in table.rows)


def _markdown(cell: str | Number) -> str:
    if isinstance(cell, str):
        return escaped_markdown(cell)
    interval = f" {escaped_markdown(cell.interval)}" if cell.interval else ""
    return (f"**{cell.text}**" if cell.marked else cell.text) + interval


def escaped_markdown(text: str) -> str:
    """Escape a text for Markdown, and join its whitespace to single spaces."""
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.split()))


def as_latex(table: Table) -> str:
    """Format a table as a LaTeX table environment with booktabs rules; marked numbers are bold."""
    align = "".join("l" if column == 0 or _is_words(table, column) else "r" for column in range(len(table.head)))
    head = [escaped_latex(heading.name) + LATEX_ARROWS[heading.better] for heading in table.head]
    caption = " ".join(escaped_latex(text) for text in (f"{table.title}.", *notes_of(table, "Bold")))
    rows = [[_latex(cell) for cell in row] for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \begin{{tabular}}{{{align}}}",
            r"    \toprule",
            rf"    {' & '.join(head)} \\",
            r"    \midrule",
            *(rf"    {' & '.join(row)} \\" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex(cell: str | Number) -> str:
    if isinstance(cell, str):
        return escaped_latex(cell)
    text = "--" if math.isnan(cell.estimate.value) else cell.text.replace("-", "$-$")
    interval = rf" {{\scriptsize {cell.interval.replace('-', '$-$')}}}" if cell.interval else ""
    return (rf"\textbf{{{text}}}" if cell.marked else text) + interval


def escaped_latex(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def escaped_csv(cell: object) -> object:
    """Prefix text that a spreadsheet would evaluate as a formula with an apostrophe; numbers are unchanged."""
    text = str(cell)
    if text.startswith(FORMULAS) and number(text) is None:
        text = f"'{text}"
    return text.replace("\r", "\\r") if isinstance(cell, str) else cell  # the writer does not quote a lone "\r"


def as_csv(results: Results) -> str:
    """Format every estimate of every row and size as CSV, in full precision with interval and count."""
    return _csv(results, results.estimates, ["planned", "failed"], lambda group: [group.planned, group.failed])


def differences_as_csv(results: Results) -> str:
    """Format every difference from the baseline as CSV, in full precision with interval and count."""
    return _csv(results, results.differences, ["baseline"], lambda group: [results.baseline])


def orders_as_csv(results: Results) -> str:
    """Format the rankings as CSV: per pair of rows the share of resamples where one is better, and significance."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["size", "column", "row", "other row", "share of draws better", "told apart", "n"])
    for ranking in results.rankings:
        for (one, two), share in ranking.better.items():
            sure = "yes" if ranking.apart[one, two] else "no"
            line = [size_text(ranking.size), ranking.column, one, two, repr(share), sure, ranking.count]
            writer.writerow(map(escaped_csv, line))
    return file.getvalue()


def _csv(results: Results, numbers: Numbers, more: list[str], values: Callable[..., list[object]]) -> str:
    axes, columns = list(results.axes), [*results.columns, *results.costs]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    parts = [f"{column.name}{end}" for column in columns for end in ("", " low", " high", " n")]
    writer.writerow(map(escaped_csv, ["size", "row", "method", *axes, "ranks", *more, *parts]))
    for group in results.groups:
        found = [numbers.get((group.row, group.size, column.name)) for column in columns]
        if any(found) or numbers is results.estimates:
            cells = [cell for each in found for cell in _cells(each)]
            places = [group.axes.get(axis, "") for axis in axes]
            line = [size_text(group.size), group.row, group.method, *places, group.ranks, *values(group), *cells]
            writer.writerow(map(escaped_csv, line))
    return file.getvalue()


def _cells(found: Estimate | None) -> list[str]:
    """Value, low, high and count as texts; empty where there is no value."""
    if found is None:
        return [""] * 4
    return [
        *("" if math.isnan(part) else repr(part) for part in (found.value, found.low, found.high)),
        str(found.count),
    ]
