"""Copy an experiment's results into the documentation: tables between two marks, plots and sheets beside the page.

Usage: python tools/publish_results.py runs/asg-figure-7

Writes docs/results/NAME.md, where NAME is the folder's. Text before and after the marks, the human interpretation, is
kept. The folder must have a report: run `vitrail report` first.
"""

import shutil
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from vitrail.experiments.report.plots import slug
from vitrail.experiments.run.store import Folder

RESULTS = Path(__file__).parents[1] / "docs/results"
BEGIN, END = "<!-- made by tools/publish_results.py -->", "<!-- end -->"
PICTURES = ("plots/*.png", "sheets/*.webp")
WIDEST, QUALITY = 1400, 82  # maximum width in pixels, and quality of WebP


def publish(folder: Path) -> Path:
    """Write the page of one experiment and return its path."""
    name, text = folder.resolve().name, (folder / "tables.md").read_text(encoding="utf-8")
    title, _, tables = text.partition("\n\n")
    page = RESULTS / f"{name}.md"
    before, after = parts(page) if page.exists() else (f"{title}\n\n", "\n")
    body = "\n\n".join([BEGIN, *pictures(folder, RESULTS / name), tables.strip(), END])
    page.write_text(f"{before}{body}{after}", encoding="utf-8")
    return page


def parts(page: Path) -> tuple[str, str]:
    """Return the text before and after the marks.

    Raises:
        SystemExit: If the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    return text.partition(BEGIN)[0], text.partition(END)[2]


def pictures(folder: Path, into: Path) -> list[str]:
    """Replace the pictures of a page by plots and sheets, and return their Markdown.

    Of sheets over two axes only those over the first two are copied.
    """
    if into.exists():
        shutil.rmtree(into)
    plan = Folder(folder).plan()
    axes = [axis["name"] for axis in plan.experiment.get("axes", ())]
    left_out = tuple(f"{slug('pictures', *pair)}-" for pair in list(combinations(axes, 2))[1:])
    files = [file for pattern in PICTURES for file in sorted(folder.glob(pattern))]
    found = {file.stem: file for file in files if not file.stem.startswith(left_out)}
    figures = [cell for cell in plan.cells if cell.kind == "heatmap"]
    found |= {slug(cell.row, cell.run["prompt"], str(cell.run["seed"])): folder / cell.picture for cell in figures}
    if found:
        into.mkdir(parents=True)
    for name, file in found.items():
        with Image.open(file) as image:
            image.thumbnail((WIDEST, image.height))
            image.convert("RGB").save(into / f"{name}.webp", quality=QUALITY)
    return [f"![{name.replace('-', ' ')}]({into.name}/{name}.webp)" for name in found]


def main(folders: Annotated[list[Path], typer.Argument(help="Experiments' folders with a report.")]) -> None:
    """Publish each experiment and print its page's path."""
    for folder in folders:
        print(publish(folder))


if __name__ == "__main__":
    typer.run(main)
