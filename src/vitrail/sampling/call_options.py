"""What one call of a sampler says: the run, what comes with it, and how it is spread over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from vitrail.core.config.paths import expanded_or_none

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.core.config.run_config import RunConfig
    from vitrail.core.method.backbone import CallbackValue
    from vitrail.core.method.inputs import Extras
    from vitrail.sampling.callbacks import CallbackRun

OutputType = Literal["pil", "pt", "latent"]
Callback = Callable[["CallbackRun", int, "Tensor", "dict[str, CallbackValue]"], "Mapping[str, object] | None"]


@frozen(kw_only=True)
class Spread:
    """How a run is spread over ranks and kept; none of it reaches the picture.

    Attributes:
        communicator: Of this rank; None is one rank alone. Its trace begins anew with the run.
        speeds: Relative speeds of the ranks, alike on all; () for equal ones.
        checkpoint: A file to go on from and to write, or None.
        checkpoint_every: Steps between two writes.
    """

    communicator: Communicator | None = None
    speeds: Sequence[float] = ()
    checkpoint: Path | None = field(default=None, converter=expanded_or_none)
    checkpoint_every: int = 5


@frozen(eq=False)
class Call:
    """What one call of a sampler says.

    Attributes:
        config: The run.
        extras: What the caller brings that is no plain data.
        callback: After every step, or None.
        output_type: Of the pictures.
        spread: The ranks.
        stop: Whether the run should end at the next step.
        tensor_inputs: Names of the tensors that the callback wants, None for its own or the latents.
    """

    config: RunConfig
    extras: Extras
    callback: Callback | None
    output_type: OutputType
    spread: Spread
    stop: Callable[[], bool]
    tensor_inputs: Sequence[str] | None = None
