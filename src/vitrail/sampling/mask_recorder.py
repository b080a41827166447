"""Heat maps of a mask source, recorded over the steps of one small picture and drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field, frozen

from vitrail.comm.backends.in_process import solo
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.exchange import Exchange
from vitrail.core.method.attention_maps import kind_of
from vitrail.core.method.composition import Composition
from vitrail.core.method.hookspecs import hookimpl
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import registry
from vitrail.sampling.heatmap_figure import Panel, draw

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.sampling.sampler import Sampler


MOST_LAYERS = 8  # rows of the figure; of more layers some are left out


@frozen(kw_only=True, eq=False)
class Moment:
    """What was recorded at one step.

    Attributes:
        step: Number of the step, counted from 1.
        clean: Predicted clean latents, Float32[Tensor, "batch channels h w"].
        mask: Where guidance would act, Float32[Tensor, "batch 1 h w"], or None for everywhere.
        layers: Map of each block, Float32[Tensor, "batch 1 h w"], by its number.
    """

    step: int
    clean: Tensor
    mask: Tensor | None
    layers: Mapping[int, Tensor]


@define
class MaskRecorder:
    """A plugin that records the maps and masks of a mask source.

    Attributes:
        at: Shares of the steps after which it records.
        reads_words: Whether the mask source needs words of the prompt.
        moments: The records.
    """

    at: tuple[float, ...]
    reads_words: bool
    moments: list[Moment] = field(factory=list)

    @hookimpl(wrapper=True)
    def vitrail_mask(
        self, step: Step, key: Prediction, predicted: ModelOutput
    ) -> Generator[None, tuple[Any, Any], tuple[Any, Any]]:
        """Record the mask, and return it unchanged.

        Raises:
            ConfigError: If the prompt has no content word.
        """
        if self.reads_words and not predicted.has_content:
            raise ConfigError("the prompt has no word that counts, so there is no map to draw")
        mask, state = yield
        if step.index + 1 in {_step_at(share, step.num_steps) for share in self.at}:
            moment = Moment(step=step.index + 1, clean=key.clean, mask=mask, layers=predicted.layers)
            self.moments.append(moment)
        return mask, state


def record_figure(
    sampler: Sampler,
    run: RunConfig,
    at: tuple[float, ...],
    output: Path,
    plugins: Sequence[tuple[str, object]] = (),
) -> list[Moment]:
    """Sample a picture, record its mask source on the way, and draw the figure.

    Args:
        sampler: A sampler whose method sees the whole picture as one view and has a mask source.
        run: Settings of the run.
        at: Shares of the steps after which to record.
        output: PNG, SVG or PDF file.
        plugins: (name, plugin) pairs that observe the run.
    """
    composition = sampler.composition
    request = composition.attention_request()
    recorder = MaskRecorder(at, request is not None)
    result = sampler.again([("heatmap", recorder), *plugins]).run(run)
    kind = None if request is None else request.kind
    kind = kind_of(sampler.backbone.offers) if kind == "text" else kind
    block = "up block" if kind == "cross" else "block"
    panels = [_panel(sampler, moment, run, block) for moment in recorder.moments]
    draw(result.images[0], panels, _title(run), _subtitle(run, composition), output)
    return recorder.moments


def read_shares(text: str, name: str = "--at") -> tuple[float, ...]:
    """Parse shares of the steps from the command line, e.g. ``0.25,0.5,1.0``.

    Raises:
        ConfigError: Beginning with ``name``, if they are not numbers in (0, 1].
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or any(not 0 < share <= 1 for share in shares):
        raise ConfigError(f"{name} {text!r}: write shares of the steps, more than 0 and at most 1, e.g. 0.25,0.5,1.0")
    return shares


def _step_at(share: float, num_steps: int) -> int:
    """Return the step, counted from 1, at which a share of the steps ends, rounded half up."""
    return max(1, math.floor(share * num_steps + 0.5))


def _panel(sampler: Sampler, moment: Moment, run: RunConfig, block: str) -> Panel:
    """Render a record as one column of the figure."""
    import torch

    backbone, layers = sampler.backbone, moment.layers
    with torch.inference_mode():
        decoded = backbone.decode(moment.clean, Exchange.among(solo()), "none", True, streams=Streams(run.seed))
        picture = decoded[..., : run.height, : run.width]
    backbone.release()
    kept = _spread(sorted(layers), MOST_LAYERS)
    return Panel(
        title=f"after step {moment.step} of {run.num_inference_steps}",
        picture=backbone.to_pil(picture)[0],
        mask=None if moment.mask is None else moment.mask[0, 0].float().cpu().numpy(),
        layers={f"{block} {number}": layers[number][0, 0].float().cpu().numpy() for number in kept},
    )


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most ``most`` entries of a list, evenly spaced, the last included."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]


def _title(run: RunConfig) -> str:
    return f"“{run.prompt}”"


def _subtitle(run: RunConfig, composition: Composition) -> str:
    model = Path(run.model).name if os.sep in run.model else run.model
    words = attrs.asdict(composition.stages[0].masking, recurse=False).get("words")  # type: ignore[arg-type]
    of = f" of {', '.join(words)}" if words else ""
    return f"{masking_name(composition)}{of}, model {model}, {run.width}x{run.height} pixels, seed {run.seed}"


def masking_name(composition: Composition) -> str:
    """Return the registered name of the first stage's mask source."""
    return registry().name_of("masking", type(composition.stages[0].masking))
