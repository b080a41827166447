"""Vitrail's run, with what the authors' code drew, and the comparison."""

from typing import Any

from attrs import frozen

from vitrail.errors import VitrailError
from vitrail.sampling.authors_code import authors_codes
from vitrail.sampling.methods import load_method
from vitrail.sampling.result import Result
from vitrail.sampling.sampler import Sampler

from .checkout import RefusedError
from .comparing import Comparison, compared
from .entries import Entry, Setting, options_of
from .feeding import Feeder, fed
from .models import Model
from .recordings import Recording
from .watching import Seen

SEED = 5_260_817  # of Vitrail's run, whose streams are answered; any number that no other stream has


@frozen(eq=False)
class Outcome:
    """A finished comparison.

    Attributes:
        comparison: What differs.
        given: The streams that got recorded draws, in order.
    """

    comparison: Comparison
    given: tuple[str, ...]


def compare(entry: Entry, recording: Recording, model: Model, tolerance: float) -> Outcome:
    """Run Vitrail with the recorded draws and compare.

    Args:
        entry: The method.
        recording: The authors' run.
        model: The model.
        tolerance: Largest difference of latents that counts as none.

    Raises:
        DrawsDifferError: If the two do not draw alike; then nothing is compared.
        RefusedError: If Vitrail refuses the run.
    """
    setting = Setting(**recording.call, generator=None)
    feeder = Feeder(recording.draws, entry.streams, entry.unused)
    try:
        seen, result = sampled(entry, setting, model.pipeline(), feeder)
    except VitrailError as error:
        raise RefusedError(f"Vitrail does not run {entry.method} on this model: {error}") from error
    feeder.check_all_used()
    ours = seen, result.latents, result.images[0]
    return Outcome(compared((recording.seen, recording.picture), ours, tolerance), tuple(feeder.given))


def sampled(entry: Entry, setting: Setting, pipe: Any, feeder: Feeder) -> tuple[Seen, Result]:
    """Return what was seen of Vitrail's run at the method's switches, and its result.

    Args:
        entry: The method.
        setting: Numbers of the run.
        pipe: A pipeline of diffusers.
        feeder: Answers the streams' draws.

    Raises:
        VitrailError: If Vitrail refuses it.
        DrawsDifferError: If the feeder cannot answer.
    """
    known, seen = authors_codes().get(entry.method), Seen()
    switches = entry.set if entry.set is not None else known.set if known else ()
    method = load_method(entry.method, [setting.filled(each) for each in switches])
    sampler = Sampler.from_pipeline(pipe, method)
    with fed(feeder, SEED), seen.of(pipe.unet, pipe.vae):
        result = sampler(
            setting.prompt,
            height=setting.height,
            width=setting.width,
            seed=SEED,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance,
            **options_of(entry),
        )
    return seen, result
