"""``vitrail compare``: one prompt by several methods, on one contact sheet with costs and metrics of each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import field, frozen

from vitrail.cli.console import console, say
from vitrail.cli.listener import ConsoleListener, show
from vitrail.cli.options import Device, Verbose, configure_logging
from vitrail.cli.report import stopping
from vitrail.cli.run import RunOptions, run_experiment
from vitrail.core.config.atomic import replacing
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.paths import expanded_or_none
from vitrail.errors import ConfigError
from vitrail.experiments.analysis.measurement import Loaded, load, look
from vitrail.experiments.report.page_content import metric_values
from vitrail.experiments.report.sheets import FAINT, FONT, GAP, INK, MARGIN, folded
from vitrail.experiments.report.tables import Heading, Table
from vitrail.experiments.spec.experiment_file import spelt_out, structure
from vitrail.pictures.picture_files import open_own

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from vitrail.experiments.analysis.measurement import Seen
    from vitrail.experiments.spec.cells import Cell

SIDE = 320  # pixels of a picture's longer side on the sheet
MOST = 4  # maximum number of pictures in a row
SHEET = "comparison.png"
OF_ANY_MODEL = ["sharpness", "seams"]
OF_DEMO = ["objects", {"type": "sharpness", "boxes": "judge"}, "repetition", "seams"]


def compare(
    prompt: Annotated[str, typer.Argument(help="One sentence.")],
    methods: Annotated[
        str, typer.Option(help="Names or files, separated by commas.")
    ] = "direct,multidiffusion,asg-plus",
    size: Annotated[str, typer.Option(help="Pixels: 512, or 768x512; or 2x for times the training size.")] = "2x",
    model: Annotated[str, typer.Option(help="`demo`, a diffusers folder, a .safetensors file or a hub id.")] = "demo",
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", "--num-inference-steps", help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is off.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; named after the prompt.")] = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """One prompt by several methods, on one sheet."""
    given = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    wanted = ComparisonOptions(
        prompt=prompt,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        size=size,
        model=model,
        seed=seed,
        run={name: value for name, value in given.items() if value is not None},
        out=out,
        device=device,
    )
    configure_logging(verbose)
    compare_methods(wanted)


@frozen(kw_only=True)
class ComparisonOptions:
    """Options of a comparison.

    Attributes:
        prompt: The prompt.
        methods: Registered names or files of methods.
        size: As in an experiment: 512, 768x512, or 2x.
        model: Registered name, folder, file or hub id.
        seed: Seed of all pictures.
        run: Further run options.
        out: Output folder; named after the prompt and the seed if None.
        device: A torch device; None for the default.
    """

    prompt: str
    methods: tuple[str, ...] = field(converter=as_tuple)
    size: str
    model: str = "demo"
    seed: int = 0
    run: dict[str, Any] = field(factory=dict)
    out: Path | None = field(default=None, converter=expanded_or_none)
    device: str | None = None


def compare_methods(wanted: ComparisonOptions) -> None:
    """Sample missing pictures, compute their metrics, and write the sheet of the finished ones.

    Raises:
        VitrailError: Before anything is sampled, naming every problem.
        SystemExit: 130 if interrupted; 1 if a method has failed, after writing the sheet of the others.
    """
    table = spelt_out(table_of(wanted))
    slug = re.sub(r"[^a-z0-9]+", "-", wanted.prompt.lower()).strip("-")[:48] or "prompt"
    folder = wanted.out or Path("runs") / f"compare-{slug}-{wanted.seed}"
    out = console()
    experiment = structure(table, "vitrail compare")
    failed = False
    try:
        run_experiment(experiment, table, Path(), RunOptions(out=folder, device=wanted.device), out)
    except SystemExit as end:
        failed = end.code == 1
        if not failed:
            raise
    with stopping():
        loaded = load([folder])
        if loaded.done:
            seen = look(loaded, ConsoleListener(out))
            _show(loaded, seen, out)
            with replacing(folder / SHEET) as part:
                sheet(loaded, seen).save(part)
            say(out, f"{folder / SHEET}")
    if failed:
        raise SystemExit(1)


def table_of(wanted: ComparisonOptions) -> dict[str, Any]:
    """Return the comparison as the tables of an experiment.

    Raises:
        ConfigError: If a method is named twice.
    """
    if len(set(wanted.methods)) < len(wanted.methods):
        raise ConfigError("--methods names a method twice")
    return {
        "title": wanted.prompt,
        "model": wanted.model,
        "prompts": [wanted.prompt],
        "seeds": [wanted.seed],
        "sizes": [wanted.size],
        "methods": list(wanted.methods),
        "metrics": OF_DEMO if wanted.model == "demo" else OF_ANY_MODEL,
        "run": wanted.run,
        "resamples": 0,
    }


def _lines(cell: Cell, loaded: Loaded, seen: Seen) -> list[tuple[str, str]]:
    """Costs and metrics of one picture, as pairs of a name and a formatted value."""
    outcome = loaded.outcomes[cell.address]
    memory = "" if outcome.peak_bytes is None else f"{outcome.peak_bytes / 2**20:.0f} MiB"
    measured = metric_values(cell, loaded, seen).items()
    return [("time", f"{outcome.seconds:.1f} s"), ("calls", str(outcome.model_calls)), ("memory", memory), *measured]


def _show(loaded: Loaded, seen: Seen, out: Console) -> None:
    by_row = {cell.row: _lines(cell, loaded, seen) for cell in loaded.done}
    names = [name for name, _ in next(iter(by_row.values()), [])]
    rows = [(row, *(text for _, text in lines)) for row, lines in by_row.items()]
    show(Table(title="", head=[Heading(name=name) for name in ("method", *names)], rows=rows), out)


def sheet(loaded: Loaded, seen: Seen) -> Image:
    """Draw the finished pictures in a grid, each with its method above and its costs and metrics below."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    cells = loaded.done
    font: Any = ImageFont.load_default(size=FONT)
    scale = SIDE / max(cells[0].size)
    height, width = (max(1, round(side * scale)) for side in cells[0].size)
    captions = [_caption(cell, loaded, seen, width, font) for cell in cells]
    line = FONT + 4
    below = max(text.count("\n") + 1 for text in captions) * line
    across = min(MOST, len(cells))
    tall = line + 2 * MARGIN + height + below + GAP
    title = folded(loaded.experiment.title, across * (width + GAP), font, 2)
    top = (title.count("\n") + 1) * line + MARGIN
    page = Pictures.new(
        "RGB", (MARGIN + across * (width + GAP), top + math.ceil(len(cells) / across) * tall + MARGIN), "white"
    )
    draw = ImageDraw.Draw(page)
    draw.multiline_text((MARGIN, MARGIN), title, fill=INK, font=font)
    for number, (cell, text) in enumerate(zip(cells, captions, strict=True)):
        x, y = MARGIN + number % across * (width + GAP), top + number // across * tall
        draw.text((x, y + MARGIN), cell.row, fill=INK, font=font)
        small = open_own(loaded.file(cell)).resize((width, height), Pictures.Resampling.LANCZOS)
        page.paste(small, (x, y + line + MARGIN))
        draw.multiline_text((x, y + line + 2 * MARGIN + height), text, fill=FAINT, font=font)
    return page


def _caption(cell: Cell, loaded: Loaded, seen: Seen, width: int, font: Any) -> str:
    """Costs and metrics of one picture as text, in lines at most ``width`` pixels wide."""
    lines = [""]
    for name, text in _lines(cell, loaded, seen):
        part = f"{name} {text}"
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, part]
    return "\n".join(line for line in lines if line)


__all__: Sequence[str] = ["ComparisonOptions", "compare", "sheet", "table_of"]
