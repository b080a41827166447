"""The run of the authors' code, recorded. Nothing of Vitrail's sampling is imported, for older libraries' sake."""

import contextlib
import platform
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from attrs import frozen
from PIL.Image import Image, fromarray

from .builders import Made, Source, made
from .checkout import Checkout, RefusedError, check_packages
from .draws import Recorder
from .entries import Entry, Setting, options_of
from .models import Model
from .recordings import Recording
from .watching import Seen

PER_CALL = ("prompt", "height", "width", "native", "factor", "steps", "guidance", "eta")


@frozen(kw_only=True)
class Wish:
    """What the user wants otherwise than the entry.

    Attributes:
        prompt: Text of the picture.
        height: Pixels; the entry's number of training sides if None.
        width: Pixels, as above.
        steps: Number of steps; the entry's if None.
        seed: Seed of the authors' generators.
    """

    prompt: str = "a fox on a snow field"
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    seed: int = 0


def setting_of(entry: Entry, pipe: Made, wish: Wish) -> Setting:
    """Return the numbers of a comparison.

    Args:
        entry: The method.
        pipe: The authors' pipeline.
        wish: What the user wants.

    Raises:
        RefusedError: If another number of steps is wanted than the entry can have.
    """
    if entry.steps_are_fixed and wish.steps not in (None, entry.steps):
        raise RefusedError(f"{entry.method} is compared in {entry.steps} steps, which its other numbers belong to")
    native, factor = int(pipe.network.config.sample_size), 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    height, width = (int(native * share) * factor for share in entry.size)
    return Setting(
        prompt=wish.prompt,
        height=wish.height or height,
        width=wish.width or width,
        native=native,
        factor=factor,
        steps=wish.steps or entry.steps,
        guidance=entry.guidance,
        eta=float(options_of(entry).get("eta", 0.0)),
        generator=torch.Generator("cpu").manual_seed(wish.seed),
    )


def record(entry: Entry, checkout: Checkout, model: Model, wish: Wish) -> Recording:
    """Run the authors' code and keep what it did. This runs the code of the checkout.

    Args:
        entry: The method.
        checkout: The checkout.
        model: The model.
        wish: What the user wants.

    Raises:
        RefusedError: If the code is not there, or fails.
    """
    checkout.check(entry.file, entry.name)
    check_packages(entry.needs)
    recorder, seen = Recorder(checkout.root), Seen()
    scheduler = options_of(entry).get("scheduler")
    with (
        _in_scratch(wish.seed) as scratch,
        recorder.ready(),
        checkout.module(entry.file, entry.package_root) as module,
        _theirs(checkout),
    ):
        pipe = made(entry, Source(module, checkout, model, scheduler, scratch))
        setting = setting_of(entry, pipe, wish)
        call = {name: setting.filled(value) for name, value in entry.call.items()}
        with seen.of(pipe.network, pipe.vae), recorder.listening():
            picture = picture_of(pipe.call(**call))
    if not seen.moments or not seen.decoded:
        raise RefusedError(
            f"{entry.file}: {entry.name} asked its unet or its vae for nothing, so there is nothing to see"
        )
    return Recording(
        method=entry.method,
        commit=checkout.commit,
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
        },
        call={name: getattr(setting, name) for name in PER_CALL},
        draws=recorder.draws,
        seen=seen,
        picture=picture,
    )


def picture_of(answer: Any) -> Image:
    """Return the last picture of what a pipeline returned: pictures, or an object, a table or a tuple with them.

    Raises:
        RefusedError: If there is none.
    """
    found = answer["sample"] if isinstance(answer, dict) and "sample" in answer else getattr(answer, "images", answer)
    if isinstance(found, tuple) and found:
        found = found[0]
    if isinstance(found, list) and found:
        found = found[-1]
    if isinstance(found, np.ndarray):
        found = fromarray((255 * (found[-1] if found.ndim == 4 else found)).round().astype(np.uint8))
    if not isinstance(found, Image):
        raise RefusedError(
            f"the authors' pipeline returned no picture but {type(answer).__name__}; see `call` of its entry"
        )
    return found


@contextlib.contextmanager
def _in_scratch(seed: int) -> Iterator[Path]:
    """Work in an empty folder, with seeded global generators, and restore those afterwards; prints go to stderr."""
    kept = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.chdir(scratch))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield scratch
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


@contextlib.contextmanager
def _theirs(checkout: Checkout) -> Iterator[None]:
    """Say of an exception in the authors' code where it was."""
    try:
        yield
    except (RefusedError, KeyboardInterrupt):
        raise
    except Exception as error:
        inside = [
            f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(checkout.root.resolve()))
        ]
        where = f" at {inside[-1].filename}:{inside[-1].lineno} in {inside[-1].name}" if inside else ""
        raise RefusedError(
            f"the authors' code failed{where}: {type(error).__name__}: {error}. It may want a diffusers older than "
            f"{diffusers.__version__}: record it in an environment of its own (--record), and compare here (--recorded)"
        ) from error
