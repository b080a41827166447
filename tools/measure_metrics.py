"""Measure the metrics themselves on rendered pictures with known defects.

Usage: python tools/measure_metrics.py --out docs/results/metrics.md

About five minutes on one core with the default number of pictures.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from attrs import evolve
from rich.console import Console
from rich.progress import track
from torch import Generator, Tensor

from vitrail.core.method.metric import Metric, Shown
from vitrail.core.schedule.streams import Streams
from vitrail.demo.backgrounds import BACKGROUNDS
from vitrail.demo.scenes import BASE_SIZE, OBJECTS, Placement, Scene, choice, render, uniform
from vitrail.metrics.fid import Fid
from vitrail.metrics.inception_score import InceptionScore
from vitrail.metrics.kid import Kid
from vitrail.metrics.renders import DemoRenders
from vitrail.metrics.repetition import Repetition
from vitrail.metrics.seams import Seams

SIZES = (256, 384, 512)  # sides of pictures in pixels
COPIES = (0, 1, 2, 4, 9)  # numbers of equal objects in a picture
STRAYS = 2  # number of small objects beside a large one
STEPS = (1, 2, 4, 8, 16)  # of tone at a border, in 1/255
SHIFTS = (1, 2, 4)  # along a border, in pixels
SETS = (16, 32, 64, 128)  # numbers of pictures in a set
REFERENCE = 256  # number of reference pictures
SQUARE = (BASE_SIZE, BASE_SIZE)
Row = list[str]


def copies(generator: Generator, count: int) -> Scene:
    """Draw a scene of equal objects, one per cell of a grid; two are in opposite corners."""
    background, name = choice(generator, tuple(BACKGROUNDS)), choice(generator, OBJECTS)
    if count <= 1:
        spots = [Placement(name, uniform(generator, 0.45, 0.85), *_near(generator, 0.5, 0.5, 0.08))]
        return Scene(background, spots[:count])
    cells = math.ceil(math.sqrt(count))
    grid = [(row, column) for row in range(cells) for column in range(cells)]
    corner = int(torch.randint(2, (), generator=generator))
    chosen = [(0, corner), (1, 1 - corner)] if count == 2 else grid[:count]
    spots = []
    for row, column in chosen:
        middle = _near(generator, (row + 0.5) / cells, (column + 0.5) / cells, 0.08 / cells)
        spots.append(Placement(name, uniform(generator, 0.6, 0.95) / cells, *middle))
    return Scene(background, spots)


def strays(generator: Generator, side: int) -> Scene:
    """Draw a scene of a large object in the centre and small ones of its class in corners, as large as in a window."""
    background, name = choice(generator, tuple(BACKGROUNDS)), choice(generator, OBJECTS)
    corners = [(y, x) for y in (0.12, 0.88) for x in (0.12, 0.88)]
    order = torch.randperm(4, generator=generator)[:STRAYS].tolist()
    small = [min(0.22, uniform(generator, 0.45, 0.85) * BASE_SIZE / side) for _ in order]
    spots = [Placement(name, size, *corners[place]) for size, place in zip(small, order, strict=True)]
    return Scene(background, [Placement(name, uniform(generator, 0.45, 0.6), 0.5, 0.5), *spots])


def _near(generator: Generator, y: float, x: float, reach: float) -> tuple[float, float]:
    return y + uniform(generator, -reach, reach), x + uniform(generator, -reach, reach)


def told_apart(less: Tensor, more: Tensor) -> float:
    """Compute the area under the ROC curve: the probability that ``more`` is larger than ``less``, 1/2 for ties."""
    return ((more[:, None] > less).double() + 0.5 * (more[:, None] == less).double()).mean().item()


def repeats(pictures: int) -> list[Row]:
    """Measure repetition: rows of size, kind, medians and areas under the curve of both columns."""
    meter, rows = Repetition(), []
    for side in SIZES:
        kinds: dict[str, Callable[[Generator], Scene]] = {
            f"{count} objects" if count != 1 else "1 object": lambda g, count=count: copies(g, count)
            for count in COPIES
        }
        kinds[f"1 object and {STRAYS} strays"] = lambda g, side=side: strays(g, side)
        seen = {}
        for kind, draw in kinds.items():
            scenes = [Streams(i).generator(kind, side) for i in range(pictures)]
            drawn = (render(draw(g), side, side, g) for g in scenes)
            shown = (Shown(picture=each, prompt="", native_size=BASE_SIZE) for each in drawn)
            told = track(shown, f"{kind}, {side} px", total=pictures, transient=True)
            seen[kind] = torch.stack([meter.look(each) for each in told])
        one = seen["1 object"]
        for kind, found in seen.items():
            numbers = found.median(dim=0).values.tolist()
            chances = [told_apart(one[:, column], found[:, column]) for column in range(2)]
            rows.append([str(side), kind, *(f"{n:.2f}" for pair in zip(numbers, chances, strict=True) for n in pair)])
    return rows


def lighter(each: Shown, step: float) -> Shown:
    """Add a step of tone, in 1/255, at the borders of a picture."""
    picture = each.picture.clone()
    for row in each.rows:
        picture[:, row:] += step / 255
    for column in each.columns:
        picture[:, :, column:] += step / 255
    return evolve(each, picture=picture.clamp(0, 1))


def shifted(each: Shown, pixels: int) -> Shown:
    """Shift the part beyond each border along it, in pixels."""
    picture = each.picture.clone()
    for row in each.rows:
        picture[:, row:] = picture[:, row:].roll(pixels, dims=2)
    for column in each.columns:
        picture[:, :, column:] = picture[:, :, column:].roll(pixels, dims=1)
    return evolve(each, picture=picture)


def seams(pictures: int) -> list[Row]:
    """Measure seams: rows of defect, value and area under the curve by width."""
    middle = (SIZES[0] // 2,)
    plain = [
        evolve(p, rows=middle, columns=middle) for p in DemoRenders(count=pictures, seed=3).pictures(*SIZES[:1] * 2)
    ]
    planted = {"none": plain}
    planted |= {f"step of {step}/255": [lighter(each, step) for each in plain] for step in STEPS}
    planted |= {f"shift by {pixels} px": [shifted(each, pixels) for each in plain] for pixels in SHIFTS}
    rows = []
    for kind, shown in planted.items():
        row = [kind]
        for width in (1, 2):
            meter = Seams(width=width)
            none, found = (torch.stack([meter.look(each) for each in group])[:, 0] for group in (plain, shown))
            row += [f"{meter.gather(found[:, None], None)[0]:.2f}", f"{told_apart(none, found):.2f}"]
        rows.append(row)
    return rows


def soft(each: Shown, width: int) -> Shown:
    """Blur a picture by a box of a width in pixels."""
    kernel = torch.ones(3, 1, width, width) / width**2
    padded = F.pad(each.picture[None], (width // 2,) * 4, mode="reflect")
    return evolve(each, picture=F.conv2d(padded, kernel, groups=3)[0])


def sets() -> list[Row]:
    """Measure set metrics: rows of set, FID, KID and inception score."""
    drawn = (Streams(i).generator("set") for i in range(max(SETS)))
    pool = [Shown(picture=render(copies(g, 1), *SQUARE, g), prompt="", native_size=BASE_SIZE) for g in drawn]
    true = list(DemoRenders(count=REFERENCE).pictures(*SQUARE))
    kinds = {f"{count} true pictures": pool[:count] for count in SETS}
    few = pool[: SETS[2]]
    kinds |= {f"{len(few)}, blurred by {width} px": [soft(each, width) for each in few] for width in (3, 5)}
    kinds |= {
        f"{len(few)}, of which {different} differ": [few[i % different] for i in range(len(few))]
        for different in (32, 8)
    }
    kinds["the reference itself"] = true
    metrics: Sequence[Metric] = (Fid(), Kid(), InceptionScore())
    reference, rows = looked(metrics, true), []
    for kind, shown in kinds.items():
        seen = looked(metrics, shown)
        numbers = [m.gather(seen[repr(m.extractor)], reference[repr(m.extractor)])[0] for m in metrics]
        rows.append([kind, *(f"{n:.{m.columns[0].decimals}f}" for n, m in zip(numbers, metrics, strict=True))])
    return rows


def looked(metrics: Sequence[Metric], shown: list[Shown]) -> dict[str, Tensor]:
    """Extract the features of pictures for some metrics, once per extractor, by its ``repr``."""
    extractors = {repr(metric.extractor): metric.extractor for metric in metrics}
    return {name: torch.stack([extractor.look(each) for each in shown]) for name, extractor in extractors.items()}


def table(head: Row, rows: list[Row]) -> str:
    """Format a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def main(
    out: Annotated[Path | None, typer.Option(help="Markdown file for the tables.")] = None,
    pictures: Annotated[int, typer.Option(help="Drawn pictures a row.")] = 60,
    threads: int = 1,
) -> None:
    """Measure all metrics, and print and write the page."""
    torch.set_num_threads(threads)
    page = PAGE.format(
        pictures=pictures,
        reference=REFERENCE,
        native=BASE_SIZE,
        sets=table(["set", "FID", "KID", "IS"], sets()),
        seams=table(["planted", "seams", "told apart", "seams, width 2", "told apart"], seams(pictures)),
        repeats=table(["pixels", "shows", "repeated", "told apart", "repeated, mean", "told apart"], repeats(pictures)),
    )
    Console().print(page, markup=False, highlight=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page)


PAGE = """# How well the metrics see known defects

Made by `python tools/measure_metrics.py --out docs/results/metrics.md`: drawn pictures with planted defects,
{pictures} a row. `told apart` is the chance that a picture with the defect has a larger number than one without (area
under the ROC curve); 0.5 is chance. What the numbers mean: [how-to](../how-to/metrics.md).

## Repetition

Planted copies of one object on a drawn background; training size {native} pixels, features `demo-judge`. The numbers
are medians; a picture with one object is what the others are told apart from, so a background should be at 0.5 or
below. Copies share the frame; strays are small ones in the corners beside a large object.

{repeats}

## Seams

Pictures of 256 pixels with one border each way, in the middle. The numbers are geometric means.

{seams}

## Distances of sets

Pictures of {native} pixels with one object, drawn by chance, against {reference} of `demo-renders`; features
`demo-judge`. What FID has of a set of true pictures is its bias and falls with their number. KID is around 0, a little
below since the reference takes objects in turn, so that two of its pictures are less alike than two by chance.

{sets}
"""

if __name__ == "__main__":
    typer.run(main)
