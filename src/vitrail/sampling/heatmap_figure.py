"""Drawing of recorded maps: the finished picture at the left, steps as columns, mask and layers as rows."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from vitrail.core.config.atomic import replacing
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy import ndarray
    from PIL.Image import Image

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = "inferno"
PALE = 0.5  # how far the picture below a map is faded to white
VEIL = 0.85  # opacity of the map's colour where the map is highest
CELL, DPI = 1.75, 130  # inches, dots per inch
INK, FAINT = "#26292e", "#6b7078"
LEGEND = "grey: low, yellow: high; the mask from 0 to 1"
LAYERS = ", a block's map from its lowest value to its highest"


@frozen(kw_only=True, eq=False)
class Panel:
    """One column of the figure.

    Attributes:
        title: Title of the column.
        picture: The clean picture predicted at this step.
        mask: In [0, 1], Float["h w"], or None for everywhere.
        layers: Attention maps by name, Float["h w"].
    """

    title: str
    picture: Image
    mask: ndarray[Any, Any] | None
    layers: Mapping[str, ndarray[Any, Any]] = field(factory=dict)


def check_target(out: Path, force: bool) -> None:
    """Refuse a file that cannot be drawn to, before anything expensive.

    Raises:
        ConfigError: If matplotlib is missing, the suffix is unknown, the folder does not exist, or the file does and
            ``force`` is False.
    """
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise ConfigError("a heat map needs matplotlib, which is not installed; pip install 'vitrail[plot]'") from error
    if out.suffix not in SUFFIXES:
        raise ConfigError(
            f"--output {out}: a heat map is drawn as {', '.join(SUFFIXES)}, got {out.suffix or 'no suffix'!r}"
        )
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--output {out}: there is no folder {out.parent} that can be written to")
    if out.exists() and not force:
        raise ConfigError(f"--output {out}: exists; give another name, or --force to overwrite it")


def draw(final: Image, panels: Sequence[Panel], title: str, note: str, out: Path) -> None:
    """Draw the figure and write it atomically.

    Args:
        final: The finished picture.
        panels: The columns.
        title: Title of the figure.
        note: Text below the figure.
        out: PNG, SVG or PDF file, by its suffix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ["predicted", "mask", *panels[0].layers]
    rows, columns, width = len(names), len(panels), CELL * final.width / final.height
    figure = Figure(figsize=((2 + columns) * width + 0.5, rows * CELL + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    title = textwrap.shorten(title, 28 * (2 + columns), placeholder=" ...")
    figure.suptitle(title, fontsize=13, color=INK, parse_math=False)
    below = f"{note}\n{LEGEND}{LAYERS * (rows > 2)}"
    figure.supxlabel(below, fontsize=8, color=FAINT, linespacing=1.5, parse_math=False)
    grid = figure.add_gridspec(rows, 2 + columns)
    _show(figure.add_subplot(grid[: min(2, rows), :2]), final, "finished")
    for column, panel in enumerate(panels):
        maps = [None, panel.mask, *panel.layers.values()]
        for row, (name, heat) in enumerate(zip(names, maps, strict=True)):
            axes = figure.add_subplot(grid[row, 2 + column])
            _show(axes, panel.picture if row == 0 else overlaid(panel.picture, heat, stretch=row > 1), "")
            if row == 0:
                axes.set_title(panel.title, fontsize=9, color=INK)
            if column == 0:
                axes.set_ylabel(name, fontsize=9, color=INK)
            if row == 1 and heat is None:
                axes.text(0.5, 0.5, "everywhere", ha="center", transform=axes.transAxes, fontsize=8, color=INK)
    with replacing(out) as part:
        figure.savefig(part, dpi=DPI, metadata={"Software": None} if out.suffix == ".png" else {})


def overlaid(picture: Image, heat: ndarray[Any, Any] | None, stretch: bool) -> Image:
    """Lay the colours of a map over a faded grey picture, more opaque the higher the map.

    Args:
        picture: A picture of any size.
        heat: Float["h w"], resized to the picture; None leaves the picture faded.
        stretch: Whether colours span the map's own range instead of [0, 1].
    """
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image as Pictures

    pale = 1 - (1 - PALE) * (1 - np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) / 255)
    if heat is not None:
        low, high = (float(heat.min()), float(heat.max())) if stretch else (0.0, 1.0)
        level = Pictures.fromarray(((heat - low) / max(high - low, 1e-12)).astype(np.float32))
        share = np.asarray(level.resize(picture.size, Pictures.Resampling.BICUBIC)).clip(0, 1)[..., None]
        pale += VEIL * share * (colormaps[COLOURS](share[..., 0])[..., :3] - pale)
    return Pictures.fromarray((255 * pale).round().astype(np.uint8))


def _show(axes: Axes, picture: Image, title: str) -> None:
    axes.imshow(picture, interpolation="lanczos")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
