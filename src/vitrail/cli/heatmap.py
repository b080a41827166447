"""``vitrail heatmap``: where a mask source looks, recorded over the steps of one small picture.

Samples the whole picture as one view, by default at the size that the model was trained at, and keeps what the
mask source was given and made of it at a few steps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, evolve, field, frozen

from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.cli import preparation as commands
from vitrail.cli.console import console, say
from vitrail.cli.heatmap_figure import Panel, check_target, draw
from vitrail.cli.progress import Progress
from vitrail.comm.backends.in_process import solo
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.paths import expanded
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.exchange import Exchange
from vitrail.core.method.composition import Composition
from vitrail.core.method.hookspecs import hookimpl
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError, Problems
from vitrail.sampling.discovery import registry

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.protocols import Predicted
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.sampling.sampler import Sampler

PREFERRED = ("up-block-attention", "joint-attention", "pfsa")  # the first that a model serves
MOST_LAYERS = 8  # rows of the figure, above which some layers are left out


@frozen(kw_only=True)
class Wanted:
    """What to record and where to draw it.

    Attributes:
        masking: A registered mask source; what the model serves best if None.
        words: Words of the prompt that alone count.
        at: Shares of the steps after which to look.
        sets: Overrides of the method, e.g. ``stages.0.masking.ema=0.5``.
        output: PNG, SVG or PDF file.
        force: Overwrite it.
        device: A torch device, or None.
    """

    masking: str | None = None
    words: tuple[str, ...] = field(converter=as_tuple, default=())
    at: tuple[float, ...] = field(converter=as_tuple, default=(0.25, 0.5, 1.0))
    sets: tuple[str, ...] = field(converter=as_tuple, default=())
    output: Path = field(default=Path("heatmap.png"), converter=expanded)
    force: bool = False
    device: str | None = None


@frozen(kw_only=True, eq=False)
class Moment:
    """What one step said.

    Attributes:
        step: Its number, counted from 1.
        clean: The predicted clean latents, Float32[Tensor, "batch channels h w"].
        mask: Where guidance would act, Float32[Tensor, "batch 1 h w"], or None for everywhere.
        layers: The map of each block, Float32[Tensor, "batch 1 h w"], by its number.
    """

    step: int
    clean: Tensor
    mask: Tensor | None
    layers: Mapping[int, Tensor]


@define
class Recorder:
    """A plugin that keeps what the mask source saw and made.

    Attributes:
        at: Shares of the steps after which it looks.
        reads_words: Whether the mask source follows words of the prompt.
        moments: What it has kept.
    """

    at: tuple[float, ...]
    reads_words: bool
    moments: list[Moment] = field(factory=list)

    @hookimpl(wrapper=True)
    def vitrail_mask(
        self, step: Step, key: Prediction, predicted: Predicted
    ) -> Generator[None, tuple[Any, Any], tuple[Any, Any]]:
        """Keep the answer, and hand it on."""
        if self.reads_words and not predicted.has_content:
            raise ConfigError("the prompt has no word that counts, so there is no map to draw")
        mask, state = yield
        if step.index + 1 in {_step_at(share, step.num_steps) for share in self.at}:
            moment = Moment(step=step.index + 1, clean=key.clean, mask=mask, layers=predicted.layers)
            self.moments.append(moment)
        return mask, state


def heatmap(given: Mapping[str, Any], size: str | None, wanted: Wanted) -> None:
    """Sample, record and draw.

    Args:
        given: Fields of the run, as on the command line.
        size: Pixels as on the command line; that of the model's training if None.
        wanted: What to record and where to draw it.

    Raises:
        VitrailError: Before the model is loaded, if something is wrong with what is wanted.
    """
    run, composition = _prepare(given, size, wanted)
    out = console()
    say(out, f"loading model {run.model}")
    from vitrail.backbones.pipeline_backbone import quiet_libraries
    from vitrail.sampling.sampler import Sampler

    quiet_libraries()
    sampler = Sampler.of(run, composition, wanted.device)
    if size is None:
        side = sampler.backbone.native_size * sampler.backbone.vae_scale_factor
        run = evolve(run, height=side, width=side)
    progress = Progress(out, bar=out.is_terminal)
    progress.expect(sampler.plan(run), 1)
    with progress:
        moments = record_figure(sampler, run, wanted.at, wanted.output, [("progress", progress)])
    steps = ", ".join(str(moment.step) for moment in moments)
    say(out, f"{wanted.output}: {_name(composition)} after step {steps} of {run.num_inference_steps}")


def record_figure(
    sampler: Sampler,
    run: RunConfig,
    at: tuple[float, ...],
    output: Path,
    plugins: Sequence[tuple[str, object]] = (),
) -> list[Moment]:
    """Sample a picture, record what its mask source says on the way, and draw that.

    Args:
        sampler: Of the whole picture as one view, with a mask source.
        run: What to sample.
        at: Shares of the steps after which to look.
        output: PNG, SVG or PDF file.
        plugins: (name, plugin) pairs that observe the run.
    """
    composition = sampler.composition
    request = composition.attention_request()
    recorder = Recorder(at, request is not None)
    result = sampler.again([("heatmap", recorder), *plugins]).run(run)
    block = "block" if request is None or request.kind == "joint" else "up block"
    panels = [_panel(sampler, moment, run, block) for moment in recorder.moments]
    draw(result.images[0], panels, _title(run), _subtitle(run, composition), output)
    return recorder.moments


def read_shares(text: str, name: str = "--at") -> tuple[float, ...]:
    """Shares of the steps as the command line has them, e.g. ``0.25,0.5,1.0``; errors begin with the name."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or any(not 0 < share <= 1 for share in shares):
        raise ConfigError(f"{name} {text!r}: write shares of the steps, more than 0 and at most 1, e.g. 0.25,0.5,1.0")
    return shares


def _prepare(given: Mapping[str, Any], size: str | None, wanted: Wanted) -> tuple[RunConfig, Composition]:
    """The run and its method; everything that can be refused before a model is loaded."""
    problems, prepared = Problems(), None
    with problems.collect():
        check_target(wanted.output, wanted.force)
    with problems.collect():
        masking = wanted.masking or _best_masking(given)
        if masking == "none":
            raise ConfigError(f"--masking none makes no map; choose one of {', '.join(PREFERRED)}")
        sets = [f"stages.0.masking={masking}", *wanted.sets]
        if wanted.words:
            sets.append(f"stages.0.masking.words={list(wanted.words)!r}")
        prepared = commands.prepare({**given, "method": "direct"}, size, None, sets, "vitrail heatmap")
    problems.tell()
    assert prepared is not None
    return prepared


def _best_masking(given: Mapping[str, Any]) -> str:
    """The mask source that suits a model."""
    names = ("dtype", "variant", "revision")
    options = ModelOptions(**{n: given[n] for n in names if n in given}, config=given.get("model_config"))
    offers = find_model(given.get("model", "demo"), registry(), options).offers
    known: dict[str, Any] = {name: registry().get("masking", name) for name in PREFERRED}
    return next(name for name, cls in known.items() if cls.needs <= offers)


def _step_at(share: float, num_steps: int) -> int:
    """The step, counted from 1, that ends a share of them; half steps round up."""
    return max(1, math.floor(share * num_steps + 0.5))


def _panel(sampler: Sampler, moment: Moment, run: RunConfig, block: str) -> Panel:
    """A moment as pictures."""
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
    """At most so many of a list, evenly spread, the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]


def _name(composition: Composition) -> str:
    return registry().name_of("masking", type(composition.stages[0].masking))


def _title(run: RunConfig) -> str:
    return f"“{run.prompt}”"


def _subtitle(run: RunConfig, composition: Composition) -> str:
    model = Path(run.model).name if os.sep in run.model else run.model
    words = attrs.asdict(composition.stages[0].masking, recurse=False).get("words")  # type: ignore[arg-type]
    of = f" of {', '.join(words)}" if words else ""
    return f"{_name(composition)}{of}, model {model}, {run.width}x{run.height} pixels, seed {run.seed}"
