"""Measure how well masks locate the object: every mask source at the same steps of the same runs, against the judge.

Usage: python tools/measure_masks.py --out docs/results/masks.md

A run samples a picture of the training size, whose attention maps are kept, and then the two stages of `asg` at 4 times
the area. At every step of the structure stage each source makes its mask from the network's output; the judge detects
the object in the finished picture. A mask's values inside of the object's box are compared with those outside.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from attrs import define, field
from rich.console import Console
from rich.table import Table

from vitrail.core.config.loader import Loader
from vitrail.core.method.composition import Composition
from vitrail.core.method.hookspecs import hookimpl
from vitrail.demo.judge import Detection, Judge
from vitrail.experiments.spec.experiment_file import scene
from vitrail.plugins.masking.pfsa import ParameterFreeAttention
from vitrail.plugins.masking.remembered_attention import RememberedAttention
from vitrail.plugins.masking.up_block_attention import UpBlockAttention
from vitrail.sampling.discovery import registry
from vitrail.sampling.sampler import Sampler

SIZE = 256  # pixels: 4 times the training area
STRUCTURE = {
    "enter": {"resize": "pixels", "strength": [0.6]},
    "until": 0.5,
    "patching": {"type": "lattice", "key": "extra"},
    "guidance": ["async"],
    "masking": "up-block-attention",
    "fusion": "scatter",
}
DETAIL = {"patching": {"type": "windows", "jitter": True}, "fusion": "average"}
RUN = {"cascade": {}, "stages": [{"patching": "whole", "fusion": "average", "remember": True}, STRUCTURE, DETAIL]}
SOURCES = {
    "of one step": UpBlockAttention(),
    "of one step, largest of the words": UpBlockAttention(tokens="max"),
    "averaged over the stage's steps": UpBlockAttention(ema=0.8),
    "of the predicted picture (pfsa)": ParameterFreeAttention(),
    "remembered": RememberedAttention(),
    "remembered, largest of the words": RememberedAttention(tokens="max"),
    "remembered, binary": RememberedAttention(edge="binary"),
}
HEAD = ["mask", "inside", "outside", "told apart"]


@define
class AskedMasks:
    """Plugin that calls every mask source at every step at which the run calls its own."""

    states: dict = field(factory=lambda: {name: source.init() for name, source in SOURCES.items()})
    masks: dict = field(factory=lambda: {name: [] for name in SOURCES})

    @hookimpl(wrapper=True)
    def vitrail_mask(self, step, key, predicted):
        """Call all sources where attention and kept maps are available."""
        if predicted.attention is not None and predicted.memory is not None and step.phase > 0:
            for name, source in SOURCES.items():
                mask, self.states[name] = source.mask(step, key, predicted, self.states[name])
                if mask is not None:
                    self.masks[name].append(mask[0, 0].clone())
        return (yield)


def told_apart(mask: torch.Tensor, inside: torch.Tensor) -> float:
    """Compute the area under the ROC curve: the probability that a cell inside has a higher value than one outside."""
    more = (mask[inside][:, None] - mask[~inside][None]).sign()
    return float((more + 1).mean() / 2)


def box_of(found: Detection, shape: tuple[int, int]) -> torch.Tensor:
    """Return the cells of a mask of a shape that lie in an object's box, Bool[Tensor, "height width"]."""
    scale, reach = shape[0] / SIZE, found.size / 2
    rows = torch.arange(shape[0])[:, None] + 0.5
    cols = torch.arange(shape[1])[None] + 0.5
    near_y = (rows - found.center_y * scale).abs() <= reach * scale
    return near_y & ((cols - found.center_x * scale).abs() <= reach * scale)


def main(
    out: Annotated[Path | None, typer.Option(help="Markdown file for the table.")] = None,
    pictures: int = 24,
    steps: int = 20,
    threads: int = 1,
) -> None:
    """Sample pictures, compute all masks and write the table."""
    torch.set_num_threads(threads)
    console, judge = Console(width=120), Judge.load()
    method = Loader(registry()).structure(RUN, Composition, "the run")
    sampler = Sampler.from_pretrained("demo", method)
    values: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SOURCES}
    judged = 0
    for picture in range(pictures):
        asked = AskedMasks()
        call = {"height": SIZE, "width": SIZE, "seed": picture, "num_inference_steps": steps, "output_type": "pt"}
        found = judge.detect(sampler.again([("asked", asked)])(scene(picture)[1], **call).images[0])
        if len(found) != 1:
            continue
        judged += 1
        for name, masks in asked.masks.items():
            for mask in masks:
                inside = box_of(found[0], tuple(mask.shape))
                if 0 < inside.sum() < inside.numel():
                    told = told_apart(mask, inside)
                    values[name].append((float(mask[inside].mean()), float(mask[~inside].mean()), told))
    table, lines = Table(*HEAD, box=None), []
    for name, each in values.items():
        means = torch.tensor(each).mean(0).tolist() if each else [float("nan")] * 3
        lines.append([name, *(f"{mean:.2f}" for mean in means)])
        table.add_row(*lines[-1])
    console.print(table)
    if out is not None:
        body = ["| " + " | ".join(line) + " |" for line in (HEAD, ["---"] * len(HEAD), *lines)]
        out.write_text(PAGE.format(pictures=pictures, judged=judged, table="\n".join(body), size=SIZE, steps=steps))
        console.print(f"written to {out}")


PAGE = """# How well masks find the object

Made by `python tools/measure_masks.py --out docs/results/masks.md`: {pictures} runs at {size}x{size} pixels with
{steps} steps on the demo model - a picture of the training size, then the two stages of `asg` - of which the judge
finds exactly one object in {judged}; these count. Every source is asked at the same structure steps of the same runs.

- `inside`, `outside`: mean of the mask in the box of the object that the judge finds in the finished picture, and
  elsewhere. A box is not the object's outline, so 1 and 0 are out of reach.
- `told apart`: the chance that a cell inside has a higher value than one outside (area under the ROC curve); 0.5 is
  chance. It does not depend on how a map is stretched to [0, 1].

{table}
"""

if __name__ == "__main__":
    typer.run(main)
