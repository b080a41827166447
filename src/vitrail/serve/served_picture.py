"""A picture of the page, from its wish to its tiles."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs
from attrs import define

from vitrail.core.config.run_config import RunConfig
from vitrail.pictures import tiles
from vitrail.serve.pyramid import NotThereError, Pyramid
from vitrail.serve.wishes import FIELDS

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.sampling.recipe import Recipe

Status = Literal["running", "stopping", "stopped", "done", "failed"]
FLAGS = {"variant": "--variant", "revision": "--revision", "model_config": "--model-config"}


@define(eq=False)
class ServedPicture:
    """One picture: what was asked for, how far it is, and what came of it.

    Attributes:
        number: Its number on this page, from 1.
        config: Settings of the run; the model as it was given to the command.
        file: PNG file with the recipe, once it is done.
        checkpoint: File that a stopped run goes on from.
        status: How it stands.
        step: Number of steps done.
        steps: Number of steps of the run.
        left_s: Seconds that are left, as far as that can be told.
        seconds: Seconds that it took, decoding included, in all goes.
        reason: Why it failed.
        preview: PNG of the latest preview.
        shown: The picture, or of a stopped one what was predicted; None if there is nothing to show.
        recipe: Recipe of the picture.
    """

    number: int
    config: RunConfig
    file: Path
    checkpoint: Path
    steps: int
    status: Status = "running"
    step: int = 0
    left_s: float | None = None
    seconds: float = 0.0
    reason: str = ""
    preview: bytes | None = None
    shown: Pyramid | None = None
    recipe: Recipe | None = None

    @property
    def is_running(self) -> bool:
        """Whether the model works on it."""
        return self.status in ("running", "stopping")

    @property
    def can_go_on(self) -> bool:
        """Whether it ended before it was done and what it goes on from was kept.

        A picture that was stopped before its first step begins anew, so nothing need be.
        """
        return (self.status == "stopped" and self.step == 0) or (
            self.status in ("stopped", "failed") and self.checkpoint.exists()
        )

    @property
    def version(self) -> str:
        """Text that changes with the image, for addresses."""
        return self._version_of(self.shown)

    def _version_of(self, shown: Pyramid | None) -> str:
        return f"{self.number}-{0 if shown is None else shown.number}"

    def show(self, image: Image, recipe: Recipe | None) -> None:
        """Keep a picture, in RGB."""
        count = 0 if self.shown is None else self.shown.number
        self.shown, self.recipe = Pyramid(image.convert("RGB"), count + 1), recipe

    def of_version(self, version: str) -> Pyramid:
        """Return the picture that an address names.

        Raises:
            NotThereError: If there is none, or by now another one.
        """
        shown = self.shown
        if shown is None or version != self._version_of(shown):
            raise NotThereError("there is no such picture, or it has changed")
        return shown

    def as_data(self) -> dict[str, object]:
        """Return what the page shows of it, as plain data."""
        run, shown = self.config, self.shown
        told: dict[str, object] = {
            "number": self.number, "status": self.status, "step": self.step, "steps": self.steps, "reason": self.reason,
            "left_s": self.left_s, "seconds": self.seconds, "prompt": run.prompt, "row": run.method, "seed": run.seed,
            "size": [run.height, run.width], "version": self.version, "has_preview": self.preview is not None,
            "can_go_on": self.can_go_on, "settings": {name: getattr(run, name) for name in FIELDS},
        }  # fmt: skip
        if shown is not None:
            url = f"pictures/{self.number}/{self._version_of(shown)}"
            height, width = shown.sizes[0]
            cut = {"url": url, "side": tiles.TILE, "levels": shown.sizes}
            told["shown"] = {"width": width, "height": height, "thumb": f"{url}/thumb.webp", "tiles": cut}
        if self.status == "done" and self.recipe is not None:
            told["again"] = {"command": self.command(), "python": self.python(), "recipe": attrs.asdict(self.recipe)}
        return told

    def _resolved(self) -> RunConfig:
        """Return the run with the rows per forward that were chosen, which the last bits may follow."""
        rows = self.recipe.run["row_batch"] if self.recipe is not None else None
        return attrs.evolve(self.config, row_batch=rows)

    def command(self) -> str:
        """Return the command line that makes the picture again."""
        run = self._resolved()
        words = ["vitrail", "sample", f"--size={run.width}x{run.height}", f"--method={run.method}"]
        words += [f"--model={run.model}", f"--dtype={run.dtype}", f"--seed={run.seed}"]
        words += [f"--steps={run.num_inference_steps}", f"--guidance-scale={run.guidance_scale!r}"]
        words += [] if run.negative_prompt is None else [f"--negative-prompt={run.negative_prompt}"]
        words += [] if run.row_batch is None else [f"--row-batch={run.row_batch}"]
        words += [f"{flag}={getattr(run, name)}" for name, flag in FLAGS.items() if getattr(run, name) is not None]
        return shlex.join([*words, "--", run.prompt])

    def python(self) -> str:
        """Return the Python that makes the picture again."""
        run = self._resolved()
        more = {name: getattr(run, name) for name in FLAGS if getattr(run, name) is not None}
        loading = {"method": run.method, "dtype": run.dtype, **more}
        call: dict[str, object] = {
            "negative_prompt": run.negative_prompt,
            "height": run.height,
            "width": run.width,
            "seed": run.seed,
        }
        call |= {"num_inference_steps": run.num_inference_steps, "guidance_scale": run.guidance_scale}
        call |= {"row_batch": run.row_batch}
        lines = [f"    {name}={value!r}," for name, value in call.items() if value is not None]
        return "\n".join(
            [
                "from vitrail import Sampler",
                "",
                f"sampler = Sampler.from_pretrained({run.model!r}, {_named(loading)})",
                "result = sampler(",
                f"    {run.prompt!r},",
                *lines,
                ")",
                f'result.images[0].save("picture-{run.seed}.png")',
            ]
        )


def _named(values: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
