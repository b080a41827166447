"""Attribution of errors to a model: its files may be damaged, or not belong together.

Weights and configurations carry no digest, and libraries raise any exception at any time for wrong ones.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vitrail.core.config.log import logger
from vitrail.core.engine.memory_backoff import is_out_of_memory
from vitrail.errors import ModelError, VitrailError, first_line

OURS = ("vitrail.backbones.", "vitrail.core.schedule.noise_schedule")  # prefixes of modules that call a model's parts
LIBRARIES = frozenset(
    {"accelerate", "diffusers", "einops", "numpy", "PIL", "safetensors", "tokenizers", "torch", "transformers"}
)
LONGEST = 300  # characters quoted of a library's message


@contextmanager
def model_blamed(model: str, what: str) -> Iterator[None]:
    """Turn an exception raised inside a model's parts into a ModelError; others pass, also if memory ran out.

    Args:
        model: Name of the model.
        what: What failed, as in "cannot be sampled with".

    Raises:
        ModelError: In place of the exception.
    """
    try:
        yield
    except VitrailError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or not is_inside_a_model(error):
            raise
        logger().info("model.failed", model=model, trace="".join(traceback.format_exception(error)))
        raise ModelError(
            f"model {model!r} {what}: {first_line_of(error)}; its files may be damaged or not belong together: get "
            "them again"
        ) from error


def first_line_of(error: BaseException) -> str:
    """Return the class of an error, and the first line of its message."""
    line = first_line(str(error))
    return f"{type(error).__name__}: {line[:LONGEST]}" if line else type(error).__name__


def is_inside_a_model(error: BaseException) -> bool:
    """Whether the innermost frame of this package called a model's part, with only known libraries below it."""
    modules: list[str] = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for module in reversed(modules):
        if module.startswith("vitrail."):
            return module.startswith(OURS)
        package = module.partition(".")[0]
        if package not in LIBRARIES and package not in sys.stdlib_module_names:
            return False
    return False
