"""Splitting of forwards after memory ran out.

The plan of micro-batches does not change, so other ranks are not affected: a rank that computes a micro-batch in parts
returns it whole.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field

from vitrail.core.config.log import logger
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.errors import OutOfMemory, VitrailError

if TYPE_CHECKING:
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.step import Step

SIGNS = (  # substrings of allocators' messages, of oneDNN's after a failed allocation, and of the dynamic linker's
    *("out of memory", "not enough memory", "allocate memory", "alloc_failed", "bad_alloc"),
    *("could not create a primitive", "failed to map segment"),
)
REMEDIES = "a smaller dtype (--dtype bfloat16), a method with smaller views, or a pipeline with CPU offload"


@define
class MemoryBackoff:
    """Split the forwards of one rank that do not fit in memory.

    Attributes:
        allowed: Whether a forward that does not fit is split; ``memory = "fixed"`` forbids it.
        limit: Largest number of rows per forward since memory ran out; None before.
        notes: Record of splits, one line each.
    """

    allowed: bool = True
    limit: int | None = None
    notes: tuple[str, ...] = ()
    _lock: threading.Lock = field(factory=threading.Lock, init=False, repr=False, eq=False)

    def forward(self, predict: Callable[[MicroBatch], ModelOutput], step: Step, rows: MicroBatch) -> ModelOutput:
        """Compute one micro-batch, in as many forwards as memory requires.

        Args:
            predict: One forward of the network.
            step: Position of the run.
            rows: The micro-batch.

        Raises:
            OutOfMemory: If it does not fit, and splitting is forbidden or it is a single row.
        """
        count = len(rows.views)
        if self.limit is None or count <= self.limit:
            try:
                return predict(rows)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if count == 1 or not self.allowed:
                    raise OutOfMemory(_refusal(step, rows, error)) from error
                let_go(error)
            self._back_off(step, count)  # outside the except block, where the error's frames are freed
        assert self.limit is not None
        return ModelOutput.join([self.forward(predict, step, part) for part in rows.cut(self.limit)])

    def _back_off(self, step: Step, count: int) -> None:
        """Halve the limit for the rest of the run, unless a concurrent forward has done so."""
        with self._lock:
            if self.limit is not None and self.limit < count:
                return
            self.limit = (count + 1) // 2
            rows = f"{self.limit} row{'s' * (self.limit > 1)}"
            self.notes += (f"forwards of {rows} instead of {count}: out of memory at step {step.index + 1}",)
        logger().warning("memory.short", step=step.index, rows=count, limit=self.limit)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on an accelerator, in host memory, or in a library below torch."""
    import torch
    from safetensors import SafetensorError

    if isinstance(error, VitrailError):
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    kinds = (RuntimeError, OSError, ImportError, SafetensorError)
    return isinstance(error, kinds) and any(sign in str(error).lower() for sign in SIGNS)


def let_go(error: BaseException | None) -> None:
    """Free the objects held by the frames of an error and of its causes.

    A frame that refers to its own error, as those of pluggy do, would live until the next collection of cycles, and
    with it the activations of all layers above.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _refusal(step: Step, rows: MicroBatch, error: BaseException) -> str:
    count, (height, width) = len(rows.views), rows.views[0].shape
    what = f"a forward of {count} row{'s' * (count > 1)} of {height}x{width} latent cells"
    todo = f"try {REMEDIES}"
    if count > 1:
        todo = f'memory is "fixed", so it was not cut; try memory "auto", a smaller row_batch (--row-batch), {REMEDIES}'
    reason = str(error).partition("\n")[0]
    return f"out of memory at step {step.index + 1}, in {what}: {reason}; {todo}"
