"""Contact sheets: a grid of pictures, rows by pairs or one axis by another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.core.config.atomic import replacing
from vitrail.experiments.analysis.measurement import Size
from vitrail.experiments.analysis.results import Group, Results
from vitrail.experiments.report.figures import slug
from vitrail.experiments.report.tables import curves, size_text
from vitrail.pictures.picture_files import open_own

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 192  # pixels of a picture's longer side on a sheet
SHOWN = 6  # maximum number of pairs on a sheet
GAP = 4  # pixels between pictures
FONT = 14  # pixels
MARGIN = 8  # pixels around texts
LEFT = 180  # maximum width of the rows' names in pixels
LINES = 3  # maximum number of lines of a column's head
LONGEST = 16383  # pixels: maximum side of a WebP file
QUALITY = 88
INK, FAINT, EMPTY = "#26292e", "#6b7078", "#eceae6"
Find = Callable[[int, int], tuple["Path | None", str]]  # row, column -> a picture's file, or None and a text


def draw_sheets(
    results: Results, folder: Path, suffix: str = ".webp", cell: int = CELL, shown: int = SHOWN
) -> list[Path]:
    """Draw a sheet of rows by pairs for each size, and sheets of one axis by another for every two axes.

    Args:
        results: The experiment's results with the pictures' files.
        folder: Target folder; created if missing.
        suffix: ``.webp`` or ``.png``.
        cell: Longer side of a picture on a sheet in pixels.
        shown: Maximum number of pairs on a sheet.

    Returns:
        The files, in the order in which to show them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for size in results.sizes:
        if any(group.cells for group in results.at(size)):
            name = slug("pictures", size_text(size))
            drawn.append(_save(rows_sheet(results, size, cell, shown), folder / f"{name}{suffix}"))
        axes = list(results.axes)
        for place, one in enumerate(axes):
            for two in axes[place + 1 :]:
                drawn += _axes_sheets(results, size, (one, two), folder, suffix, cell)
    return drawn


def rows_sheet(results: Results, size: Size, cell: int = CELL, shown: int = SHOWN) -> Image:
    """Draw a sheet with one line per row and one column per pair.

    Args:
        results: The experiment's results with the pictures' files.
        size: Height and width of the pictures in pixels.
        cell: Longer side of a picture on the sheet in pixels.
        shown: Maximum number of pairs, from the first that any row has.
    """
    groups = results.at(size)
    pairs = sorted({pair for group in groups for pair in group.cells})[:shown]
    heads = [f"{results.pairs[pair][0]} ({results.pairs[pair][1]})" for pair in pairs]
    return grid([group.row for group in groups], heads, lambda y, x: _find(results, groups[y], pairs[x]), size, cell)


def axes_sheet(results: Results, groups: Sequence[Group], axes: tuple[str, str], cell: int = CELL) -> Image:
    """Draw a sheet of one axis by another, all pictures of the first pair.

    Args:
        results: The experiment's results with the pictures' files.
        groups: Groups of one size that differ in these axes only.
        axes: The axis along the top and the axis along the left side.
        cell: Longer side of a picture on the sheet in pixels.
    """
    columns, rows = (_places(results, groups, axis) for axis in axes)
    at = {(group.axes[axes[1]], group.axes[axes[0]]): group for group in groups}
    pair = min(pair for group in groups for pair in group.cells)

    def find(y: int, x: int) -> tuple[Path | None, str]:
        group = at.get((rows[y], columns[x]))
        return (None, "") if group is None else _find(results, group, pair)

    names, heads = [f"{axes[1]} {place}" for place in rows], [f"{axes[0]} {place}" for place in columns]
    return grid(names, heads, find, groups[0].size, cell)


def _places(results: Results, groups: Sequence[Group], axis: str) -> list[str]:
    there = {group.axes[axis] for group in groups}
    return [place for place in results.axes[axis] if place in there]


def _axes_sheets(
    results: Results, size: Size, axes: tuple[str, str], folder: Path, suffix: str, cell: int
) -> list[Path]:
    drawn = []
    for name, groups in curves(results.at(size), *axes).items():
        crossed = all(len(_places(results, groups, axis)) > 1 for axis in axes)
        if crossed and any(group.cells for group in groups):
            file = folder / f"{slug('pictures', *axes, name, size_text(size))}{suffix}"
            drawn.append(_save(axes_sheet(results, groups, axes, cell), file))
    return drawn


def _find(results: Results, group: Group, pair: int) -> tuple[Path | None, str]:
    cell = group.cells.get(pair)
    return (None, "not there") if cell is None else (results.files[cell.address], "")


def grid(names: Sequence[str], heads: Sequence[str], find: Find, size: Size, cell: int) -> Image:
    """Draw pictures in a labelled grid, reduced if a side of the sheet would exceed ``LONGEST``.

    Args:
        names: Names of the rows.
        heads: Heads of the columns.
        find: Maps row and column index to a picture's file, or to None and a text to show instead.
        size: Height and width of the pictures in pixels.
        cell: Longer side of a picture on the sheet in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(size=FONT)
    left = min(LEFT, 1 + round(max(map(font.getlength, names))) + 2 * MARGIN)
    highest = LINES * (FONT + 4) + 2 * MARGIN
    room = min((LONGEST - left) // max(len(heads), 1), (LONGEST - highest) // max(len(names), 1)) - GAP
    scale = min(cell, room) / max(size)
    height, width = (max(1, round(side * scale)) for side in size)
    heads = [folded(head, width, font, LINES) for head in heads]
    top = max(1 + head.count("\n") for head in heads) * (FONT + 4) + 2 * MARGIN
    page = Image.new("RGB", (left + len(heads) * (width + GAP), top + len(names) * (height + GAP)), "white")
    draw = ImageDraw.Draw(page)
    for x, head in enumerate(heads):
        draw.multiline_text((left + x * (width + GAP), MARGIN), head, fill=INK, font=font)
    for y, name in enumerate(names):
        row = top + y * (height + GAP)
        lines = max(1, height // (FONT + 4))
        draw.multiline_text((MARGIN, row + MARGIN), folded(name, left - 2 * MARGIN, font, lines), fill=INK, font=font)
        for x in range(len(heads)):
            column, (file, caption) = left + x * (width + GAP), find(y, x)
            if file is None:
                draw.rectangle((column, row, column + width - 1, row + height - 1), fill=EMPTY)
                draw.text((column + MARGIN, row + MARGIN), caption, fill=FAINT, font=font)
            else:
                page.paste(_small(file, width, height), (column, row))
    return page


def _small(file: Path, width: int, height: int) -> Image:
    from PIL import Image as Pictures

    return open_own(file).resize((width, height), Pictures.Resampling.LANCZOS)


def folded(text: str, width: int, font: Any, lines: int) -> str:
    """Wrap a text at words, and end it with an ellipsis where it is cut off.

    Args:
        text: The text; its whitespace is joined to single spaces.
        width: Maximum width of a line in pixels; a longer word has a line of its own.
        font: A font of Pillow.
        lines: Maximum number of lines.
    """
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".strip()
        if not found[-1] or font.getlength(longer) <= width:
            found[-1] = longer
        elif len(found) < lines:
            found.append(word)
        else:
            found[-1] += " ..."
            break
    return "\n".join(found)


def _save(sheet: Image, out: Path) -> Path:
    """Write the sheet atomically."""
    with replacing(out) as part:
        sheet.save(part, quality=QUALITY) if out.suffix == ".webp" else sheet.save(part)
    return out
