"""Measure the judge on new drawings: exact counts, classes, confusion matrix.

Usage: python -m training.measure_judge --out docs/reference/judge.md
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from attrs import define, evolve, field, frozen
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor

from training.crops import SOFT_OBJECT
from training.detector import load_soften
from vitrail.demo.judge import WEIGHTS, Detection, Judge
from vitrail.demo.scenes import OBJECTS, Placement, Scene, draw_crowd, draw_scene, render

SIDES = (128, 192, 256, 384, 512)  # of pictures, in pixels
SOFT_SIDES = (128, 192, 256)  # of pictures that are also measured through the autoencoder, in pixels
SMALLEST = 12  # minimum size of an object in a crowd, in pixels
COMMAND = "python -m training.measure_judge"
VAE = WEIGHTS.parent / "model/vae"  # of the shipped model
Kinds = dict[str, Callable[[Generator, int], Scene]]


def crowd(generator: Generator, side: int, least: int = SMALLEST) -> Scene:
    """Draw a scene of one to nine objects.

    Args:
        generator: CPU generator.
        side: Side of the picture in pixels.
        least: Minimum size of an object in pixels.
    """
    while True:
        scene = draw_crowd(generator)
        if scene.placements and min(p.size for p in scene.placements) * side >= least:
            return scene


def soft_crowd(generator: Generator, side: int) -> Scene:
    """Draw a scene of one to nine objects that are large enough to survive the autoencoder."""
    return crowd(generator, side, SOFT_OBJECT)


KINDS: Kinds = {
    "1-9 objects": crowd,
    "one object": lambda generator, side: draw_scene(generator, close_up=0, empty=0),
    "background": lambda generator, side: draw_scene(generator, empty=1),
}
SHARES = {"1-9 objects": 1.0, "one object": 0.5, "background": 0.25}  # number of pictures, over that of crowds
SOFT_KINDS: Kinds = KINDS | {"1-9 objects": soft_crowd}


@define
class Tally:
    """Counts over pictures of one kind and side.

    Attributes:
        kind: Kind of the scenes.
        side: Side of the pictures in pixels.
        softened: Whether they passed through the autoencoder.
        pictures: Number of pictures.
        exact: Pictures with the right number of detections.
        too_many: Pictures with more detections than objects.
        matched: Detections that lie on an object.
        right: Matched detections of the right class.
        missed: Objects without a detection.
        invented: Detections without an object.
    """

    kind: str
    side: int
    softened: bool
    pictures: int = 0
    exact: int = 0
    too_many: int = 0
    matched: int = 0
    right: int = 0
    missed: int = 0
    invented: int = 0

    @property
    def row(self) -> list[str]:
        """Cells of the table's row."""
        right = f"{self.right / self.matched:.1%}" if self.matched else "-"
        return [
            f"{self.kind}{' (autoencoder)' if self.softened else ''}",
            str(self.side),
            str(self.pictures),
            f"{self.exact / self.pictures:.1%}",
            f"{self.too_many / self.pictures:.1%}",
            right,
            str(self.matched + self.missed),
            str(self.missed),
            str(self.invented),
        ]


HEADER = ["pictures of", "px", "number", "exact count", "too many", "class right", "objects", "missed", "invented"]


def gap(placement: Placement, detection: Detection, side: int) -> float:
    """Compute the distance of a detection from an object, over the object's size (maximum norm).

    Args:
        placement: The object.
        detection: The detection.
        side: Side of the picture in pixels.
    """
    y, x = detection.center_y / side - placement.center_y, detection.center_x / side - placement.center_x
    return max(abs(y), abs(x)) / placement.size


def match(true: tuple[Placement, ...], found: tuple[Detection, ...], side: int) -> list[tuple[int, int]]:
    """Match detections to objects whose centre is within half their size, in order of score.

    Args:
        true: The objects.
        found: The detections, in descending order of score.
        side: Side of the picture in pixels.

    Returns:
        Pairs of the indices of an object and a detection.
    """
    pairs: dict[int, int] = {}
    for number, detection in enumerate(found):
        free = [(gap(p, detection, side), index) for index, p in enumerate(true) if index not in pairs]
        nearest, index = min(free, default=(math.inf, -1))
        if nearest < 0.5:
            pairs[index] = number
    return list(pairs.items())


@frozen(eq=False)
class Measurement:
    """Counts and the confusion matrix of all pictures.

    Attributes:
        judge: The judge.
        tallies: Counts by kind and side.
        confusion: Int64[Tensor, "classes+1 classes+1"], rows by true and columns by detected class; the last column
            counts missed objects, the last row detections without an object.
    """

    judge: Judge
    tallies: list[Tally] = field(factory=list)
    confusion: Tensor = field(factory=lambda: torch.zeros(len(OBJECTS) + 1, len(OBJECTS) + 1, dtype=torch.int64))

    def add(self, tally: Tally, scene: Scene, picture: Tensor) -> None:
        """Count the detections in one picture.

        Args:
            tally: Counts of the picture's kind.
            scene: The true scene.
            picture: Float32[Tensor, "3 side side"] in [0, 1].
        """
        found = self.judge.detect(picture)
        pairs = match(scene.placements, found, tally.side)
        true = [OBJECTS.index(p.name) for p in scene.placements]
        said = [OBJECTS.index(d.name) for d in found]
        tally.pictures += 1
        tally.exact += len(found) == len(true)
        tally.too_many += len(found) > len(true)
        tally.matched += len(pairs)
        tally.right += sum(true[i] == said[j] for i, j in pairs)
        tally.missed += len(true) - len(pairs)
        tally.invented += len(found) - len(pairs)
        for i, j in pairs:
            self.confusion[true[i], said[j]] += 1
        for i in set(range(len(true))) - {i for i, _ in pairs}:
            self.confusion[true[i], -1] += 1
        for j in set(range(len(said))) - {j for _, j in pairs}:
            self.confusion[-1, said[j]] += 1


def measure(judge: Judge, vae: Path, number: int, seed: int) -> Measurement:
    """Measure the judge on new pictures of every kind and side, see ``SHARES``.

    Args:
        judge: The judge.
        vae: Folder of the autoencoder; softened pictures are left out if it has none.
        number: Number of crowds per side.
        seed: Seed of the scenes.
    """
    result = Measurement(judge)
    soften = load_soften(vae)
    plan = [(kind, side, None) for kind in KINDS for side in SIDES]
    plan += [(kind, side, soften) for kind in KINDS for side in SOFT_SIDES if soften]
    generator = Generator().manual_seed(seed)
    for kind, side, through in plan:
        tally = Tally(kind, side, through is not None)
        for _ in track(range(math.ceil(number * SHARES[kind])), f"{kind}, {side} px"):
            scene = (SOFT_KINDS if through else KINDS)[kind](generator, side)
            picture = render(scene, side, side, generator)
            result.add(tally, scene, through(picture, generator) if through else picture)
        result.tallies.append(tally)
    return result


def markdown(result: Measurement, options: str, weights: Path) -> str:
    """Return the page for the documentation.

    Args:
        result: The measurement.
        options: Options of the command line, to show.
        weights: Folder of the judge.
    """
    config = result.judge.config
    digest = hashlib.sha256((weights / "judge.safetensors").read_bytes()).hexdigest()[:12]
    parameters = sum(p.numel() for p in result.judge.network.parameters())
    softened = any(t.softened for t in result.tallies)
    columns = [*OBJECTS, "missed"]
    soft_note = [
        f"Rows marked *autoencoder* were encoded and decoded first; objects there have at least {SOFT_OBJECT} px."
    ]
    lines = [
        "# The judge",
        "",
        "The demo model's judge counts and names the objects of a picture. It is itself measured, on pictures that it",
        f"has not seen. It has {parameters / 1e6:.2f} million parameters, and its least score is {config.threshold}.",
        "",
        f"Weights: sha256 `{digest}...`. This page was written by:",
        "",
        f"    {COMMAND} {options} --out docs/reference/judge.md",
        "",
        "## Counts",
        "",
        "Crowds hold objects of 0.1 to 1.0 of the frame, none below 12 px, which overlap little. *Exact count* and",
        "*too many* are shares of the pictures; *class right* is a share of the detections that lie on an object.",
        *(soft_note if softened else []),
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * 1 + "---:|" * (len(HEADER) - 1),
        *("| " + " | ".join(tally.row) + " |" for tally in result.tallies),
        "",
        "## Confusion",
        "",
        "Rows are what was drawn, columns what was found, over all pictures above; the last row counts detections",
        "where nothing was drawn.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in zip([*OBJECTS, "nothing"], result.confusion.tolist(), strict=True):
        lines.append(f"| {name} | " + " | ".join(str(count) if count else "" for count in row) + " |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path | None, typer.Option(help="Write the page for the docs there.")] = None,
    number: Annotated[int, typer.Option(help="Crowds a size.")] = 200,
    weights: Annotated[Path, typer.Option(help="Folder of the judge.")] = WEIGHTS,
    vae: Annotated[Path, typer.Option(help="Folder of the autoencoder; left out if there is none.")] = VAE,
    threshold: Annotated[float | None, typer.Option(help="Least score, instead of the config's.")] = None,
    seed: int = 2000,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Measure the judge and print a table."""
    torch.set_num_threads(threads)
    judge = Judge.load(weights)
    if threshold is not None:
        judge = evolve(judge, config=evolve(judge.config, threshold=threshold))
    result = measure(judge, vae, number, seed)
    table = Table(*HEADER)
    for tally in result.tallies:
        table.add_row(*tally.row)
    Console().print(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        options = f"--number {number} --seed {seed}"
        options += "" if threshold is None else f" --threshold {threshold}"
        options += "" if vae == VAE else f" --vae {vae}"
        out.write_text(markdown(result, options, weights))


if __name__ == "__main__":
    typer.run(main)
