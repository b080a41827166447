"""Options of one call of a sampler: the run, its inputs, and its distribution over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.config.paths import expanded_or_none
from vitrail.core.engine.exchange import MEASURED, TOO_EARLY, ExchangeKind, Speeds
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.core.config.run_config import RunConfig
    from vitrail.core.method.backbone import CallbackValue
    from vitrail.core.method.inputs import Extras
    from vitrail.sampling.call_pictures import PictureCall
    from vitrail.sampling.callbacks import CallbackRun
    from vitrail.sampling.output_types import OutputType

Callback = Callable[["CallbackRun", int, "Tensor", "dict[str, CallbackValue]"], "Mapping[str, object] | None"]


def _known_exchange(_: object, __: object, given: object) -> None:
    if given not in get_args(ExchangeKind):
        raise ConfigError(f"exchange must be one of {', '.join(get_args(ExchangeKind))}, got {given!r}")


def _fit_for(spread: Spread, __: object, given: Speeds) -> None:
    """Refuse speeds that are no numbers, and those that are not known when a dataflow is planned."""
    if isinstance(given, str) and given != MEASURED:
        raise ConfigError(f'speeds must be "{MEASURED}" or a number for each rank, got {given!r}')
    if isinstance(given, str) and spread.exchange == "dataflow":
        raise ConfigError(
            f'speeds="{MEASURED}" with exchange="dataflow": {TOO_EARLY}; give a number for each rank, e.g. (1, 1, '
            "0.5), or leave exchange out"
        )


@frozen(kw_only=True)
class Spread:
    """Distribution of a run over ranks, and its checkpoint; does not affect the picture.

    Attributes:
        communicator: This rank's communicator; None for a single rank. Its trace is cleared when the run begins.
        speeds: Relative speeds of the ranks, the same on all; () for equal ones, "auto" to measure them on the way.
        exchange: What ranks wait for at a step: "barrier" for all views, "dataflow" for those that theirs overlap, in
            stages where that will do; the same on all.
        checkpoint: File to resume from and to write, or None.
        checkpoint_every: Steps between two writes.
    """

    communicator: Communicator | None = None
    speeds: Speeds = field(default=(), validator=_fit_for)
    exchange: ExchangeKind = field(default="barrier", validator=_known_exchange)
    checkpoint: Path | None = field(default=None, converter=expanded_or_none)
    checkpoint_every: int = 5


@frozen(eq=False)
class Call:
    """Arguments of one call of a sampler.

    Attributes:
        config: Settings of the run; its texts and seed are those of the first picture.
        pictures: What differs between the pictures, in order.
        extras: Caller-supplied inputs that are not plain data.
        callback: Called after every step, or None.
        output_type: Type of the pictures.
        spread: Ranks and checkpoint.
        stop: Return whether the run should end before the next step.
        tensor_inputs: Names of the tensors for the callback; None for its own ``tensor_inputs`` or the latents.
    """

    config: RunConfig
    pictures: tuple[PictureCall, ...] = field(converter=as_tuple)
    extras: Extras
    callback: Callback | None
    output_type: OutputType
    spread: Spread
    stop: Callable[[], bool]
    tensor_inputs: Sequence[str] | None = None
