"""Detection of schedulers that draw noise outside the run's generator, by one trial step on a tiny tensor."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Generator

SHAPE = (1, 4, 2, 2)
_checked: set[str] = set()  # classes and settings known to draw from the generator alone


def check_own_noise(scheduler: Any, takes_generator: bool, options: Mapping[str, float]) -> None:
    """Refuse a scheduler whose step draws noise from another source than the generator it is given.

    Args:
        scheduler: A scheduler whose timesteps are set; not changed.
        takes_generator: Whether its ``step`` has a ``generator`` argument.
        options: Numbers that its ``step`` is given by name.

    Raises:
        CapabilityError: If it does, since the same seed would give different pictures, also between ranks.
    """
    settings = [*sorted(dict(scheduler.config).items()), *sorted(options.items())]
    place = f"{type(scheduler).__module__}.{type(scheduler).__qualname__} {settings}"
    if place in _checked:
        return
    probe, streams = copy.deepcopy(scheduler), Streams(0)
    latents, output = streams.normal(SHAPE, "latents"), streams.normal(SHAPE, "output")
    source: dict[str, Generator] = {"generator": streams.generator("noise")} if takes_generator else {}
    extra: dict[str, object] = {**options, **source}
    with _watch()() as watch:
        if hasattr(probe, "scale_model_input"):  # some schedulers warn if this call is missing
            probe.scale_model_input(latents, probe.timesteps[0])
        probe.step(output, probe.timesteps[0], latents, return_dict=False, **extra)
    if watch.drawn:
        raise CapabilityError(
            f"{type(scheduler).__name__} draws noise ({watch.drawn[0]}) that the run's seed does not decide, so the "
            "same seed would give other pictures, and ranks would differ; use another scheduler, or a setting of this "
            "one that draws from the generator its step is given"
        )
    _checked.add(place)


@functools.cache
def _watch() -> Any:
    """Return the dispatch mode that records random operations of its own thread; built late, since it imports torch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Record seeded random operations that are called without a generator."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.drawn: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            given = [*args, *(kwargs or {}).values()]
            if torch.Tag.nondeterministic_seeded in func.tags and not any(
                isinstance(g, torch.Generator) for g in given
            ):
                self.drawn.append(str(func))
            return func(*args, **(kwargs or {}))

    return Watch
