"""The static page of a report: one HTML file that works from a disk, without server or network.

Style, scripts and data are inlined; only pictures are separate files. Its scripts insert data as text only, and its
content security policy allows only these scripts and pictures from the page's folder.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
from attrs import field, frozen

from vitrail.core.config.atomic import write_text
from vitrail.core.config.fields import as_tuple
from vitrail.errors import ConfigError
from vitrail.experiments.report.page_pictures import Prepared, prepare
from vitrail.pictures.tiles import VIEWER, Sides

PARTS = Path(__file__).parent / "page_parts"
STYLES = (VIEWER / "page.css", PARTS / "grid.css", VIEWER / "viewer.css")
SCRIPTS = (
    VIEWER / "elements.js", VIEWER / "words.js", PARTS / "filters.js", PARTS / "grid.js", PARTS / "tables.js",
    PARTS / "recipe.js", VIEWER / "view.js", VIEWER / "tiles.js", VIEWER / "panes.js", VIEWER / "gestures.js",
    VIEWER / "slider.js", PARTS / "viewer.js", PARTS / "page.js",
)  # fmt: skip
PLACE = re.compile(r"\{\{(\w+)\}\}")


@frozen(kw_only=True)
class PagePicture:
    """One cell of the grid: a picture, or the error that prevented it.

    Attributes:
        row: Its row in the grid.
        method: The method's label.
        size: Height and width in pixels.
        pair: Number of its prompt and seed; pictures with equal ones are compared.
        prompt: The prompt.
        seed: Seed of all randomness of the run.
        file: The picture, relative to the page, with forward slashes; None if it failed.
        metrics: Column name to formatted value.
        seconds: Duration of sampling and decoding, without loading.
        model_calls: Rows that the network evaluated, on all ranks.
        peak_bytes: Peak memory of the run in bytes, above that before it.
        recipe: Run and method that reproduce it, as plain data.
        command: Shell command that reproduces it, for the page's folder.
        error: The error message, or None.

    Raises:
        ValueError: If there are both a file and an error, or neither.
    """

    row: str
    method: str
    size: Sides = field(converter=as_tuple)
    pair: int
    prompt: str
    seed: int
    file: str | None = None
    metrics: Mapping[str, str] = field(factory=dict)
    seconds: float | None = None
    model_calls: int | None = None
    peak_bytes: int | None = None
    recipe: Mapping[str, Any] = field(factory=dict)
    command: str = ""
    error: str | None = None

    def __attrs_post_init__(self) -> None:
        if (self.file is None) == (self.error is None):
            raise ValueError(f"a picture of a page has either a file or an error; got {self.file!r}, {self.error!r}")


@frozen(kw_only=True)
class PageTable:
    """A table of a report.

    Attributes:
        title: Title above it.
        header: Heads of the columns.
        rows: Texts of the cells, one tuple per row.
        best: Row and column index of each bold cell.
        note: Note below it.

    Raises:
        ValueError: If a row has another number of cells than the header.
    """

    title: str
    header: tuple[str, ...] = field(converter=as_tuple)
    rows: tuple[tuple[str, ...], ...] = field(converter=as_tuple)
    best: tuple[tuple[int, int], ...] = field(default=(), converter=as_tuple)
    note: str = ""

    def __attrs_post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.header)]:
            raise ValueError(f"table {self.title!r} has {len(self.header)} columns, but a row {wrong[0]!r}")


@frozen(kw_only=True)
class PagePlot:
    """A figure of a report.

    Attributes:
        title: Caption below it.
        file: The picture, relative to the page, with forward slashes.
        text: Alternative text; the title if empty.
    """

    title: str
    file: str
    text: str = ""


@frozen(kw_only=True)
class Page:
    """Content of a report's page.

    Attributes:
        title: Title of the experiment.
        source: Table or figure of a paper that it corresponds to.
        notes: Paragraphs below the title.
        rows: Names of the grid's rows, from the top.
        sizes: Height and width in pixels, in the order of the page.
        pictures: Cells of the grid; missing ones are shown as not sampled yet.
        tables: Tables of the report.
        plots: Figures of the report.

    Raises:
        ValueError: If a picture's row or size is not listed, or two pictures are in one cell.
    """

    title: str
    source: str = ""
    notes: tuple[str, ...] = field(default=(), converter=as_tuple)
    rows: tuple[str, ...] = field(default=(), converter=as_tuple)
    sizes: tuple[Sides, ...] = field(default=(), converter=as_tuple)
    pictures: tuple[PagePicture, ...] = field(default=(), converter=as_tuple)
    tables: tuple[PageTable, ...] = field(default=(), converter=as_tuple)
    plots: tuple[PagePlot, ...] = field(default=(), converter=as_tuple)

    def __attrs_post_init__(self) -> None:
        taken = set()
        for picture in self.pictures:
            place = picture.row, picture.size, picture.pair
            if picture.row not in self.rows or picture.size not in self.sizes:
                raise ValueError(f"the page has no row {picture.row!r} or no size {picture.size}")
            if place in taken:
                raise ValueError(f"the page has two pictures in row {place[0]!r}, size {place[1]}, pair {place[2]}")
            taken.add(place)

    def files(self) -> list[str]:
        """Return the paths of pictures and plots, relative to the page."""
        pictures = [picture.file for picture in self.pictures if picture.file is not None]
        return pictures + [plot.file for plot in self.plots]


def write_page(page: Page, out: Path) -> Path:
    """Write a page, and thumbnails and tiles of its pictures into the folder ``NAME_files`` beside it.

    Args:
        page: The content.
        out: The HTML file, written atomically; files of the page are relative to its folder.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If a file is outside of the folder, is missing or cannot be read as a picture.
    """
    _check_files(page.files(), out.parent)
    into = f"{out.stem}_files"
    prepared = {p.file: prepare(out.parent, p.file, into) for p in page.pictures if p.file is not None}
    write_text(out, render(page, prepared))
    return out


def render(page: Page, prepared: Mapping[str, Prepared]) -> str:
    """Return the page as HTML.

    Args:
        page: The content.
        prepared: By file of a picture, its size, thumbnail and tiles.
    """
    style, script = _joined(STYLES), '"use strict";\n{\n' + _joined(SCRIPTS) + "}\n"
    parts = {
        "title": html.escape(page.title),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "data": data_block(_data(page, prepared)),
    }
    template = (PARTS / "page.html").read_text(encoding="utf-8")
    return PLACE.sub(lambda place: parts[place[1]], template)


def data_block(data: Any) -> str:
    """Return data as JSON for a script element, with "&", "<" and ">" escaped so that it cannot end the element."""
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(page: Page, prepared: Mapping[str, Prepared]) -> dict[str, Any]:
    from urllib.parse import quote

    data = attrs.asdict(page)
    for picture in data["pictures"]:
        file = picture.pop("file")
        picture["shown"] = None if file is None else attrs.asdict(prepared[file])
    for plot in data["plots"]:
        plot["url"] = quote(plot.pop("file"))
    return data


def _finite(data: Any) -> Any:
    """Replace numbers that JSON cannot represent: nan by None, infinities by text."""
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None if math.isnan(data) else str(data)
    return data


def _joined(files: Sequence[Path]) -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _policy(style: str, script: str) -> str:
    """Content security policy that allows pictures from the page's folder, this style and this script."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src 'self' file: data:; style-src 'sha256-{digests[0]}'; "
        f"script-src 'sha256-{digests[1]}'; base-uri 'none'; form-action 'none'"
    )


def _check_files(files: Sequence[str], folder: Path) -> None:
    """Refuse files outside of the folder and missing files.

    Raises:
        ConfigError: Naming every such file.
    """
    outside = [f for f in files if PurePosixPath(f).is_absolute() or Path(f).is_absolute() or ".." in Path(f).parts]
    if outside:
        raise ConfigError(f"a page shows files of its own folder {folder} only; got {', '.join(map(repr, outside))}")
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ConfigError(f"{folder}: the page shows what is not there: {', '.join(missing)}")
