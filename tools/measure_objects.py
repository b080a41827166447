"""Measure how well ``specks`` and ``wholeness`` see damage that is planted in pictures of one object.

Usage: python tools/measure_objects.py --out docs/results/objects.md

About fifteen minutes on one core with the default number of pictures.
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import torch
import typer
from attrs import frozen
from diffusers import AutoencoderKL
from rich.console import Console
from rich.progress import track
from torch import Tensor

from measure_metrics import Row, table, told_apart
from plant_damage import DAMAGES, Drawn, draw
from vitrail.core.method.metric import Shown
from vitrail.core.schedule.streams import Streams
from vitrail.demo.scenes import BASE_SIZE
from vitrail.metrics.renders import scene_of
from vitrail.metrics.specks import Specks
from vitrail.metrics.wholeness import Wholeness

AMPLITUDES = {  # of each damage, what they are measured in, and the column that must see it
    "specks": ((0.02, 0.03, 0.04, 0.06, 0.08), "diameter over the shorter side", "specks"),
    "missing": ((0.05, 0.1, 0.2, 0.3, 0.5), "share of the object's area cut off", "whole"),
    "mixed": ((0.05, 0.1, 0.2, 0.3, 0.5), "share of the object's area that is another's", "whole"),
    "ragged": ((0.002, 0.004, 0.008, 0.016, 0.03), "displacement over the shorter side", "edges"),
    "soft": ((0.001, 0.002, 0.004, 0.008, 0.016), "width of the blur over the shorter side", "edges"),
}
COLUMNS = {"specks": (0, 1), "whole": (1, -1), "edges": (2, 1)}  # place among the answers; 1 if damage raises it
SIZES = (128, 256, 512)  # pixels
SOFTENED = ("true", "decoded")  # as drawn; through the autoencoder of the model that ships
VAE = Path(__file__).parents[1] / "src/vitrail/demo/model/vae"
SEED = 11


@frozen
class Curve:
    """How well a column sees a damage, at one size and kind of picture.

    Attributes:
        damage: Name of the damage.
        column: Name of the column.
        side: Pixels.
        kind: "true" or "decoded".
        medians: Of the column, for no damage and then by amplitude.
        chances: Area under the ROC curve, by amplitude.
    """

    damage: str
    column: str
    side: int
    kind: str
    medians: tuple[float, ...]
    chances: tuple[float, ...]

    @property
    def row(self) -> Row:
        """The line of the table: the chances, after the medians of no and of the most damage."""
        numbers = [f"{self.medians[0]:.2f}", f"{self.medians[-1]:.2f}", *(f"{each:.2f}" for each in self.chances)]
        return [self.kind, str(self.side), *numbers]


@torch.inference_mode()
def decoded(vae: AutoencoderKL, picture: Tensor) -> Tensor:
    """Encode and decode a picture without noise, Float32[Tensor, "3 Height Width"] in [0, 1]."""
    seen = vae.decode(vae.encode(picture[None] * 2 - 1).latent_dist.mode()).sample[0]
    return (seen / 2 + 0.5).clamp(0, 1)


def answers(picture: Tensor, caption: str) -> Tensor:
    """Specks, wholeness and edges of a picture, Float32[Tensor, "3"]."""
    shown = Shown(picture=picture, prompt=caption, native_size=BASE_SIZE)
    return torch.cat([Specks().look(shown), Wholeness().look(shown)])


def measure(side: int, kind: str, pictures: int, vae: AutoencoderKL) -> list[Curve]:
    """Measure all damages at one size.

    Args:
        side: Pixels.
        kind: "true" or "decoded".
        pictures: Number of drawn pictures of each amplitude.
        vae: What decodes.
    """
    streams = Streams(SEED)
    scenes = [scene_of(number, streams.generator("scene", number)) for number in range(pictures)]
    drawn = [draw(scene, side, streams.generator("texture", number)) for number, scene in enumerate(scenes)]

    def seen(name: str, amplitude: float) -> Tensor:
        def one(number: int, each: Drawn) -> Tensor:
            picture = DAMAGES[name](each, amplitude, streams.generator(name, number)).clamp(0, 1)
            return answers(decoded(vae, picture) if kind == "decoded" else picture, each.scene.caption)

        told = track(enumerate(drawn), f"{kind} {side} px, {name} {amplitude:g}", total=pictures, transient=True)
        return torch.stack([one(number, each) for number, each in told])

    sound = seen("soft", 0.0)
    return [_curve(name, side, kind, sound, [seen(name, each) for each in AMPLITUDES[name][0]]) for name in AMPLITUDES]


def _curve(name: str, side: int, kind: str, sound: Tensor, damaged: list[Tensor]) -> Curve:
    column = AMPLITUDES[name][2]
    place, sign = COLUMNS[column]
    numbers = [group[:, place] for group in (sound, *damaged)]
    chances = tuple(told_apart(sign * _known(numbers[0]), sign * _known(group)) for group in numbers[1:])
    return Curve(name, column, side, kind, tuple(float(each.nanmedian()) for each in numbers), chances)


def _known(numbers: Tensor) -> Tensor:
    return numbers[~numbers.isnan()]


def plot(curves: list[Curve], path: Path) -> None:
    """Draw one panel a damage: the chance of telling it apart, by amplitude, size and kind."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(AMPLITUDES), figsize=(16, 3.4), sharey=True, layout="constrained")
    colors = dict(zip(SIZES, ("tab:blue", "tab:orange", "tab:green"), strict=True))
    for panel, (name, (amplitudes, unit, column)) in zip(panels, AMPLITUDES.items(), strict=True):
        for each in (curve for curve in curves if curve.damage == name):
            style = "-" if each.kind == "true" else "--"
            label = f"{each.side} px, {each.kind}"
            panel.plot(amplitudes, each.chances, style, marker="o", ms=3, color=colors[each.side], label=label)
        panel.axhline(0.5, color="0.7", lw=0.8)
        panel.set(title=f"{name} by `{column}`", xlabel=unit, ylim=(0.4, 1.02), xscale="log")
        panel.set_xticks(amplitudes, [f"{each:g}" for each in amplitudes])
        panel.minorticks_off()
    panels[0].set_ylabel("told apart (AUC)")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(
    out: Annotated[Path | None, typer.Option(help="Markdown file; the plot lies beside it.")] = None,
    pictures: Annotated[int, typer.Option(help="Drawn pictures of each damage and amplitude.")] = 48,
    threads: int = 1,
) -> None:
    """Measure all damages at all sizes, and print and write the page."""
    torch.set_num_threads(threads)
    vae = AutoencoderKL.from_pretrained(VAE, low_cpu_mem_usage=False).float().eval()
    curves = [each for kind in SOFTENED for side in SIZES for each in measure(side, kind, pictures, vae)]
    parts = [HEAD.format(pictures=pictures)]
    for name, (amplitudes, unit, column) in AMPLITUDES.items():
        head = ["pictures", "px", f"{column}, sound", f"{column}, {amplitudes[-1]:g}", *(f"{a:g}" for a in amplitudes)]
        rows = [each.row for each in curves if each.damage == name]
        parts.append(f"## {name.capitalize()}, seen by `{column}`\n\nAmplitude: {unit}.\n\n{table(head, rows)}\n")
    page = "\n".join(parts)
    Console().print(page, markup=False, highlight=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
        plot(curves, out.with_name("objects.png"))


HEAD = """# How well `specks` and `wholeness` see planted damage

Made by `python tools/measure_objects.py --out docs/results/objects.md`: drawn pictures of one object, {pictures} a row,
as they are ("true") and after the autoencoder of the demo model ("decoded", what the model's own pictures can be at
best). The numbers by amplitude are the chance that a damaged picture is told from a sound one of its kind (area under
the ROC curve; 0.5 is chance); before them the column's median without damage and with the most.

![detection curves](objects.png)
"""

if __name__ == "__main__":
    typer.run(main)
