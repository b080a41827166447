"""Errors that come out of a model, told as errors of the model: its files may be damaged, or not belong together.

Weights and configurations carry no digest, and what libraries make of wrong ones is of any kind and comes at any time.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vitrail.core.config.log import logger
from vitrail.errors import ModelError, VitrailError

OURS = ("vitrail.backbones.", "vitrail.core.schedule.noise_schedule")  # modules that call a model's parts
LIBRARIES = frozenset(
    {"accelerate", "diffusers", "einops", "numpy", "PIL", "safetensors", "tokenizers", "torch", "transformers"}
)
LONGEST = 300  # characters of what a library says


@contextmanager
def model_blamed(model: str, what: str) -> Iterator[None]:
    """Tell an error that a model's own parts raised as one of the model; others go on as they are.

    Args:
        model: Its name.
        what: It could not do, as in "cannot be sampled with".

    Raises:
        ModelError: In place of what was raised inside.
    """
    try:
        yield
    except VitrailError:
        raise
    except Exception as error:
        if not is_inside_a_model(error):
            raise
        logger().info("model.failed", model=model, trace="".join(traceback.format_exception(error)))
        raise ModelError(
            f"model {model!r} {what}: {first_line_of(error)}; its files may be damaged or not belong together: get "
            "them again"
        ) from error


def first_line_of(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line[:LONGEST]}" if line else type(error).__name__


def is_inside_a_model(error: BaseException) -> bool:
    """Whether the last of our code that was at work called a part of a model, and nobody else's is in between."""
    modules: list[str] = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for module in reversed(modules):
        if module.startswith("vitrail."):
            return module.startswith(OURS)
        package = module.partition(".")[0]
        if package not in LIBRARIES and package not in sys.stdlib_module_names:
            return False
    return False
