"""The gallery: one prompt and seed, every composition at 4x, 9x and 16x area, and the heat maps over the steps.

Usage: python tools/build_gallery.py
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from measure_compositions import METHODS
from vitrail.core.hookspecs import hookimpl
from vitrail.sampler import Sampler

SIZES = (256, 384, 512)  # pixels: 4, 9 and 16 times the training area
SHOWN = 192  # pixels of a cell on the sheet


class MaskRecorder:
    """Keeps the mask and the key view's predicted clean latents of every guided step."""

    def __init__(self):
        self.masks, self.clean = [], []

    @hookimpl(wrapper=True)
    def vitrail_mask(self, step, key):
        mask, state = yield
        if mask is not None:
            self.masks.append(mask[0, 0].clone())
            self.clean.append(key.clean.clone())
        return mask, state


def sheet(rows: list[list[Image.Image]], labels: list[str], heads: list[str], cell: int) -> Image.Image:
    """Pictures in a labelled grid."""
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


def heat_maps(prompt: str, seed: int, steps: int, method: str) -> Image.Image:
    """Above the key view's predicted picture, below its mask, over the structure steps."""
    recorder = MaskRecorder()
    sampler = Sampler.from_pretrained("demo", method, plugins=[("recorder", recorder)])
    sampler(prompt, height=SIZES[0], width=SIZES[0], seed=seed, num_inference_steps=steps, output_type="latent")
    with torch.inference_mode():
        pictures = [sampler.backbone.to_pil(sampler.backbone.decode(clean))[0] for clean in recorder.clean]
    masks = [Image.fromarray((255 * mask).byte().numpy()).convert("RGB") for mask in recorder.masks]
    masks = [mask.resize((128, 128), Image.Resampling.NEAREST) for mask in masks]
    heads = [f"step {i + 1}" for i in range(len(masks))]
    return sheet([pictures, masks], ["key view, predicted", "its mask"], heads, 96)


def main(
    prompt: str = "a fox on a snow field",
    seed: int = 7,
    steps: int = 20,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the page.")] = Path("docs/gallery"),
    threads: int = 2,
) -> None:
    """Sample, lay out, write the page."""
    torch.set_num_threads(threads)
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for method in METHODS:
        sampler = Sampler.from_pretrained("demo", method)
        row = []
        for size in SIZES:
            result = sampler(prompt, height=size, width=size, seed=seed, num_inference_steps=steps)
            row.append(result.images[0])
            console.print(f"{method} {size}: {result.report.model_calls} calls, {result.report.engine_s:.1f} s")
        rows.append(row)
    heads = [f"{size}x{size}" for size in SIZES]
    sheet(rows, list(METHODS), heads, SHOWN).save(out / "compositions.webp", quality=88)
    rows[METHODS.index("asg-plus")][-1].save(out / "fox.png", optimize=True)
    heat_maps(prompt, seed, steps, "asg-plus").save(out / "heat-maps.webp", quality=88)
    (out / "index.md").write_text(PAGE.format(prompt=prompt, seed=seed, steps=steps))
    console.print(f"written to {out}")


PAGE = """# Gallery

One prompt ("{prompt}"), one seed ({seed}), {steps} steps, the demo model, which was trained at 128x128.
Made by `make gallery`. The demo model is small and soft; what to compare is how often the object appears, and where.
Plain sampling and the methods of windows repeat the fox; those that settle the structure first draw one. From the top:
the whole canvas at once, with and without changes inside the network; windows; pictures that grow; strided views.

![every composition at 4x, 9x and 16x area](compositions.webp)

The key view of `asg-plus` at 256x256 as predicted at each structure step, and its up-block attention mask,
the mean over the content words - here also "snow" and "field", so it is bright on the ground as well as on the fox:

![heat maps over the steps](heat-maps.webp)
"""

if __name__ == "__main__":
    typer.run(main)
