"""Which number format trains faster on a device: measured, since bfloat16 is slow on processors without it."""

import time
from collections.abc import Callable

import torch

TRIALS = 2  # steps of each after one that warms up


def faster_precision(take: Callable[[int, torch.dtype], object], device: torch.device) -> torch.dtype:
    """Take a few steps in float32 and in bfloat16; the weights are changed by them.

    Args:
        take: One step of training in a number format.
        device: Of the networks.
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
