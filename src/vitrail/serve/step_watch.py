"""What the page learns of a run in work (steps, time left, previews), and how it leaves one."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitrail.core.method.hookspecs import hookimpl
from vitrail.sampling.previews import PreviewAttempts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.method.backbone import CallbackValue
    from vitrail.sampling.callbacks import CallbackRun
    from vitrail.serve.served_picture import ServedPicture

PREVIEWS = 10  # about so many in a run


class LeftError(Exception):
    """The run ends here, since nobody will look at what it would decode."""


class StepWatch:
    """A ``callback_on_step_end`` and plugin that notes progress and keeps a preview every few steps.

    Args:
        work: The picture.
        works: Work of every step, in any unit.
        closing: Set when no picture is wanted any more: the run is left after the step in work.

    Attributes:
        rate: Seconds per unit of work; None before the second step.
        steps: Number of steps done in this go.
    """

    def __init__(self, work: ServedPicture, works: Sequence[float], closing: threading.Event):
        self._work, self._works, self._closing = work, works, closing
        self._every = max(1, len(works) // PREVIEWS)
        self._begun: tuple[float, float] | None = None  # time and work at the end of the first step
        self._attempts = PreviewAttempts("the page")
        self.rate: float | None = None
        self.steps = 0

    @hookimpl
    def vitrail_run_start(self) -> None:
        """Leave a run that was stopped before it began, which has nothing new to show.

        Raises:
            LeftError: If it was.
        """
        if self._work.status == "stopping" or self._closing.is_set():
            raise LeftError

    def __call__(self, run: CallbackRun, step: int, timestep: Tensor, tensors: Mapping[str, CallbackValue]) -> None:
        """Note a step that is done.

        Raises:
            LeftError: If no picture is wanted any more.
        """
        if self._closing.is_set():
            raise LeftError
        now, done = time.monotonic(), sum(self._works[: step + 1])
        if self._begun is None:
            self._begun = now, done
        elif done > self._begun[1]:
            self.rate = (now - self._begun[0]) / (done - self._begun[1])
            self._work.left_s = self.rate * (sum(self._works) - done)
        self._work.step, self.steps = step + 1, self.steps + 1
        if step % self._every == 0:
            self._work.preview = self._attempts.make(lambda: _png(run.preview())) or self._work.preview


def _png(image: Image) -> bytes:
    kept = io.BytesIO()
    image.save(kept, format="PNG", compress_level=1)
    return kept.getvalue()
