"""Choice of the faster dtype for training, by measurement, since bfloat16 is slow on CPUs without support for it."""

import time
from collections.abc import Callable

import torch

TRIALS = 2  # measured steps per dtype, after one for warm-up


def faster_precision(take: Callable[[int, torch.dtype], object], device: torch.device) -> torch.dtype:
    """Return bfloat16 on an accelerator; on a CPU, time a few steps in float32 and bfloat16, which change the weights.

    Args:
        take: Takes one training step, by index, in a dtype.
        device: Device of the networks.
    """
    if device.type != "cpu":
        return torch.bfloat16
    seconds = {dtype: _seconds(take, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return min(seconds, key=lambda dtype: seconds[dtype])


def _seconds(take: Callable[[int, torch.dtype], object], dtype: torch.dtype) -> float:
    take(0, dtype)
    started = time.perf_counter()
    for step in range(TRIALS):
        take(step, dtype)
    return time.perf_counter() - started
