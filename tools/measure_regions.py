"""Count in how many pictures of the demo model two objects lie in their own boxes, with regions and without.

Usage: python tools/measure_regions.py --picture docs/how-to/regions.webp

An object is found in its box if the judge that ships finds it with its centre inside. Without regions the prompt names
both objects; the model reads too few words to be told their places. About a minute a picture on one core.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from rich.console import Console

from vitrail import Sampler
from vitrail.metrics.judge_features import load_judge

Box = tuple[float, float, float, float]
PLACE = "on a snow field"
OBJECTS: dict[str, Box] = {"fox": (0.125, 0.25, 0.375, 0.75), "frog": (0.625, 0.25, 0.875, 0.75)}
ONE_PROMPT = f"a fox and a frog {PLACE}"


def found_in(picture: Image.Image) -> dict[str, bool]:
    """Return whether each object is found in its box."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    seen = [
        (each.name, each.center_x / picture.width, each.center_y / picture.height)
        for each in load_judge("cpu").detect(pixels)
    ]
    return {
        name: any(own == name and left <= x <= right and top <= y <= bottom for own, x, y in seen)
        for name, (left, top, right, bottom) in OBJECTS.items()
    }


def regions(bootstrap: float, feather: float) -> list[dict[str, Any]]:
    """Return the regions' tables."""
    return [
        {"box": box, "prompt": f"a {name} {PLACE}", "bootstrap": bootstrap, "feather": feather}
        for name, box in OBJECTS.items()
    ]


def framed(picture: Image.Image) -> Image.Image:
    """Return a picture with its boxes drawn."""
    shown = picture.copy()
    for left, top, right, bottom in OBJECTS.values():
        ends = (left * shown.width, top * shown.height, right * shown.width - 1, bottom * shown.height - 1)
        ImageDraw.Draw(shown).rectangle(ends, outline="black")
    return shown


def main(
    method: str = "multidiffusion",
    width: int = 512,
    height: int = 256,
    seeds: int = 12,
    steps: int = 30,
    bootstrap: float = 0.4,
    feather: float = 0.0,
    picture: Annotated[Path | None, typer.Option(help="Sheet of the first seeds, those without regions below.")] = None,
    shown: Annotated[int, typer.Option(help="Seeds on the sheet.")] = 3,
) -> None:
    """Sample, count, and print a table."""
    sampler, out = Sampler.from_pretrained("demo", method), Console()
    call: dict[str, Any] = {"width": width, "height": height, "num_inference_steps": steps}
    own = regions(bootstrap, feather)
    kinds = {
        "regions": lambda seed: sampler(PLACE.removeprefix("on "), seed=seed, regions=own, **call),
        "one prompt": lambda seed: sampler(ONE_PROMPT, seed=seed, **call),
    }
    sheet = Image.new("RGB", (shown * width, len(kinds) * height))
    out.print(f"| {method}, {width}x{height}, {seeds} seeds | {' | '.join(OBJECTS)} | both | evaluations |")
    out.print("| --- " * (3 + len(OBJECTS)) + "|")
    for row, (kind, draw) in enumerate(kinds.items()):
        found, calls = [], 0
        for seed in range(seeds):
            result = draw(seed)
            calls = result.report.model_calls
            found.append(found_in(result.images[0]))
            if seed < shown:
                sheet.paste(framed(result.images[0]), (seed * width, row * height))
        each = [f"{sum(one[name] for one in found)} of {seeds}" for name in OBJECTS]
        out.print(f"| {kind} | {' | '.join(each)} | {sum(all(one.values()) for one in found)} of {seeds} | {calls} |")
    if picture is not None:
        sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS).save(picture, quality=80)


if __name__ == "__main__":
    typer.run(main)
