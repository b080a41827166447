"""``vitrail heatmap``: the maps of a mask source, recorded over the steps of one small picture.

Samples the whole picture as one view, by default at the model's training size, and records input and mask of the
mask source at a few steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from attrs import evolve, field, frozen

from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.cli.arguments import prepare
from vitrail.cli.console import console, say
from vitrail.cli.options import Device, Dtype, Force, ModelConfig, Sets, Verbose, configure_logging
from vitrail.cli.progress import Progress
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.paths import expanded
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError, Problems
from vitrail.sampling.discovery import registry
from vitrail.sampling.heatmap_figure import check_target
from vitrail.sampling.mask_recorder import masking_name, read_shares, record_figure

PREFERRED = ("attention", "pfsa")  # the first one that the model supports is the default


def heatmap(
    prompt: Annotated[str, typer.Argument(help="One sentence.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, SVG or PDF file.")] = Path("heatmap.png"),
    masking: Annotated[str | None, typer.Option(help="A mask source; what suits the model if not given.")] = None,
    words: Annotated[list[str] | None, typer.Option(help="Of the prompt, that alone count. Repeatable.")] = None,
    at: Annotated[str, typer.Option(help="Shares of the steps after which to look.")] = "0.25,0.5,1.0",
    size: Annotated[str | None, typer.Option(help="Pixels; the size of the model's training if not given.")] = None,
    model: Annotated[
        str | None, typer.Option(help="`demo`, a diffusers folder, a .safetensors file or a hub id.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all randomness; -1 draws one.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", "--num-inference-steps", help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is off.")] = None,
    model_config: ModelConfig = None,
    sets: Sets = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    verbose: Verbose = False,
) -> None:
    """Draw where a mask source looks, over the steps of one small picture."""
    given = {
        "prompt": prompt,
        "model": model,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "model_config": model_config,
        "dtype": dtype,
    }
    configure_logging(verbose)
    wanted = HeatMapOptions(
        masking=masking,
        words=words or (),
        at=read_shares(at),
        sets=sets or (),
        output=output,
        force=force,
        device=device,
    )
    draw_heatmap({name: value for name, value in given.items() if value is not None}, size, wanted)


@frozen(kw_only=True)
class HeatMapOptions:
    """Options of a heat map.

    Attributes:
        masking: A registered mask source; the first of ``PREFERRED`` that the model supports if None.
        words: Words of the prompt to restrict the map to; () for all.
        at: Shares of the steps after which maps are recorded.
        sets: Overrides of the method, e.g. ``stages.0.masking.ema=0.5``.
        output: PNG, SVG or PDF file.
        force: Overwrite an existing output file.
        device: A torch device; None for the default.
    """

    masking: str | None = None
    words: tuple[str, ...] = field(converter=as_tuple, default=())
    at: tuple[float, ...] = field(converter=as_tuple, default=(0.25, 0.5, 1.0))
    sets: tuple[str, ...] = field(converter=as_tuple, default=())
    output: Path = field(default=Path("heatmap.png"), converter=expanded)
    force: bool = False
    device: str | None = None


def draw_heatmap(given: Mapping[str, Any], size: str | None, wanted: HeatMapOptions) -> None:
    """Sample a picture, record the mask source's maps and draw them.

    Args:
        given: Fields of the run from the command line.
        size: Pixels as on the command line, "512" or "768x512"; the model's training size if None.
        wanted: The options of the heat map.

    Raises:
        VitrailError: Before the model is loaded, naming every invalid option.
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
    say(out, f"{wanted.output}: {masking_name(composition)} after step {steps} of {run.num_inference_steps}")


def _prepare(given: Mapping[str, Any], size: str | None, wanted: HeatMapOptions) -> tuple[RunConfig, Composition]:
    """Build the run and its method, and check everything that needs no weights."""
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
        prepared = prepare({**given, "method": "direct"}, size, None, sets, "vitrail heatmap")
    problems.tell()
    assert prepared is not None
    return prepared


def _best_masking(given: Mapping[str, Any]) -> str:
    """Return the first of ``PREFERRED`` that the model supports."""
    names = ("dtype", "variant", "revision")
    options = ModelOptions(**{n: given[n] for n in names if n in given}, config=given.get("model_config"))
    offers = find_model(given.get("model", "demo"), registry(), options).offers
    known: dict[str, Any] = {name: registry().get("masking", name) for name in PREFERRED}
    return next(name for name, cls in known.items() if cls.needs <= offers)
