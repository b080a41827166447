"""Build the gallery: one prompt and seed by every method at 4x, 9x and 16x area, and heat maps over the steps.

Usage: vitrail run experiments/gallery.toml && python tools/build_gallery.py
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from vitrail.core.method.hookspecs import hookimpl
from vitrail.experiments.run.store import Folder
from vitrail.pictures.picture_files import open_picture
from vitrail.sampling.sampler import Sampler

SHOWN = 192  # side of a cell of the sheet in pixels
PICTURE_OF = "asg-cascade"  # the method whose largest picture is shown
HEAT_MAPS_OF = "asg-plus"  # a method with masks


class MaskRecorder:
    """Plugin that records the mask and the key view's predicted clean latents of every guided step."""

    def __init__(self):
        self.masks, self.clean = [], []

    @hookimpl(wrapper=True)
    def vitrail_mask(self, step, key):
        """Record mask and clean latents if the step has a mask."""
        mask, state = yield
        if mask is not None:
            self.masks.append(mask[0, 0].clone())
            self.clean.append(key.clean.clone())
        return mask, state


def sheet(rows: list[list[Image.Image]], labels: list[str], heads: list[str], cell: int) -> Image.Image:
    """Draw pictures in a labelled grid.

    Args:
        rows: Pictures of each row.
        labels: Label of each row.
        heads: Head of each column.
        cell: Side of a cell in pixels.
    """
    font, left, top = ImageFont.load_default(size=16), 190, 30
    page = Image.new("RGB", (left + cell * len(heads), top + cell * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for x, head in enumerate(heads):
        draw.text((left + x * cell + 8, 6), head, fill="black", font=font)
    for y, (label, row) in enumerate(zip(labels, rows, strict=True)):
        draw.text((8, top + y * cell + cell // 2), label, fill="black", font=font)
        for x, picture in enumerate(row):
            small = picture.resize((cell - 4, cell - 4), Image.Resampling.LANCZOS)
            page.paste(small, (left + x * cell + 2, top + y * cell + 2))
    return page


def heat_maps(prompt: str, seed: int, steps: int, method: str, size: tuple[int, int]) -> Image.Image:
    """Draw the key view's predicted pictures above their masks, over the structure steps.

    Args:
        prompt: The prompt.
        seed: The seed.
        steps: Number of sampling steps.
        method: A method with masks.
        size: Height and width in pixels.
    """
    recorder = MaskRecorder()
    sampler = Sampler.from_pretrained("demo", method, plugins=[("recorder", recorder)])
    sampler(prompt, height=size[0], width=size[1], seed=seed, num_inference_steps=steps, output_type="latent")
    with torch.inference_mode():
        pictures = [sampler.backbone.to_pil(sampler.backbone.decode(clean))[0] for clean in recorder.clean]
    masks = [Image.fromarray((255 * mask).byte().numpy()).convert("RGB") for mask in recorder.masks]
    masks = [mask.resize((128, 128), Image.Resampling.NEAREST) for mask in masks]
    heads = [f"step {i + 1}" for i in range(len(masks))]
    return sheet([pictures, masks], ["key view, predicted", "its mask"], heads, 96)


def main(
    run: Annotated[Path, typer.Option(help="The experiment's folder.")] = Path("runs/gallery"),
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the page.")] = Path("docs/gallery"),
) -> None:
    """Write the contact sheet, the heat maps and the page."""
    plan = Folder(run).plan()
    files = {(cell.method, cell.size): run / cell.picture for cell in plan.cells}
    methods, sizes = (list(dict.fromkeys(each)) for each in zip(*files, strict=True))
    rows = [[open_picture(str(files[method, size])) for size in sizes] for method in methods]
    fields = plan.cells[0].run
    prompt, seed, steps = fields["prompt"], fields["seed"], fields["num_inference_steps"]
    out.mkdir(parents=True, exist_ok=True)
    heads = [f"{width}x{height}" for height, width in sizes]
    sheet(rows, methods, heads, SHOWN).save(out / "compositions.webp", quality=88)
    rows[methods.index(PICTURE_OF)][-1].save(out / "fox.png", optimize=True)
    heat_maps(prompt, seed, steps, HEAT_MAPS_OF, sizes[0]).save(out / "heat-maps.webp", quality=88)
    (out / "index.md").write_text(PAGE.format(prompt=prompt, seed=seed, steps=steps))
    Console().print(f"written to {out}")


PAGE = """# Gallery

One prompt ("{prompt}"), one seed ({seed}), {steps} steps, the demo model, which was trained at 128x128.
Made by `make gallery`. The demo model is small; what to compare is how often the object appears, and where.
Plain sampling and the methods of windows repeat the fox; those that settle the structure first draw one. From the top:
the whole canvas at once, with and without changes inside the network; windows; pictures that grow, or follow a
small copy; strided views, and a cascade with their guidance.

![every composition at 4x, 9x and 16x area](compositions.webp)

The key view of `asg-plus` at 256x256 as predicted at each structure step, and its up-block attention mask,
the mean over the content words - here also "snow" and "field", so it is bright on the ground as well as on the fox:

![heat maps over the steps](heat-maps.webp)
"""

if __name__ == "__main__":
    typer.run(main)
