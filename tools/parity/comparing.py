"""Differences of two runs: of what the network was asked, step by step, of the latents and of the picture."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from attrs import frozen
from PIL.Image import Image
from torch import Tensor

from .watching import Row, Seen


@frozen
class StepDifference:
    """Differences at one step.

    Attributes:
        number: Counted from 1, over all sizes.
        timesteps: The authors' and Vitrail's timestep.
        rows: Number of the authors' and of Vitrail's rows.
        parts: Largest difference of each part of the network's input over Vitrail's rows, each held against the nearest
            row of the authors that no other has; infinite if none has its shape.
    """

    number: int
    timesteps: tuple[float, float]
    rows: tuple[int, int]
    parts: dict[str, float]

    def above(self, tolerance: float) -> list[str]:
        """Describe what differs by more."""
        if self.timesteps[0] != self.timesteps[1]:
            return [f"the timestep, {self.timesteps[0]:g} against {self.timesteps[1]:g}"]
        return [f"{name} by {largest:.3g}" for name, largest in self.parts.items() if not largest <= tolerance]


@frozen(kw_only=True)
class Comparison:
    """What differs between two runs.

    Attributes:
        steps: What the network is asked; ends where timesteps differ.
        counts: Number of the authors' and of Vitrail's steps.
        latents: Largest difference of the final latents; infinite if their shapes differ.
        deviation: Standard deviation of the authors' final latents.
        picture: Largest difference of the pictures in 1/255; infinite if their sizes differ.
        tolerance: Largest difference of latents and of the network's input that counts as none.
    """

    steps: tuple[StepDifference, ...]
    counts: tuple[int, int]
    latents: float
    deviation: float
    picture: float
    tolerance: float

    @property
    def first(self) -> str:
        """Description of the first difference of what the network is asked; "" if there is none."""
        for step in self.steps:
            above = step.above(self.tolerance)
            if above:
                return f"step {step.number} (timestep {step.timesteps[0]:g}): {', '.join(above)}"
        if self.counts[0] != self.counts[1]:
            return f"step {len(self.steps) + 1}: the authors have {self.counts[0]} steps, Vitrail has {self.counts[1]}"
        return ""

    @property
    def is_equal(self) -> bool:
        """Whether latents differ by no more than the tolerance, and pictures by no more than how they are rounded."""
        return self.latents <= self.tolerance and self.picture <= 1

    @property
    def rows(self) -> tuple[int, int]:
        """Number of all rows of the authors and of Vitrail, in the steps that both have."""
        return sum(step.rows[0] for step in self.steps), sum(step.rows[1] for step in self.steps)


def compared(
    theirs: tuple[Seen, Image], ours: tuple[Seen, Tensor, Image], tolerance: float, dtype: torch.dtype = torch.float64
) -> Comparison:
    """Compare two runs.

    Args:
        theirs: What was seen of the authors' run, and its picture.
        ours: What was seen of Vitrail's run, its final latents, and its picture.
        tolerance: As in ``Comparison``.
        dtype: Of the differences.
    """
    steps = []
    for number, (a, b) in enumerate(zip(theirs[0].moments, ours[0].moments, strict=False), start=1):
        parts = _parts(a.rows, b.rows) if a.timestep == b.timestep else {}
        steps.append(StepDifference(number, (a.timestep, b.timestep), (len(a.rows), len(b.rows)), parts))
        if a.timestep != b.timestep:
            break
    final = theirs[0].decoded[-1]
    return Comparison(
        steps=tuple(steps),
        counts=(len(theirs[0].moments), len(ours[0].moments)),
        latents=_largest(final.to(dtype), ours[1].to("cpu", dtype)),
        deviation=float(final.std()),
        picture=_largest(_pixels(theirs[1]), _pixels(ours[2])),
        tolerance=tolerance,
    )


def _parts(theirs: Sequence[Row], ours: Sequence[Row]) -> dict[str, float]:
    """Return the largest difference of each part, every row of ours held against the nearest one of theirs."""
    largest: dict[str, float] = {}
    shapes = {tuple(row.parts["latents"].shape) for row in ours}
    for shape in shapes:
        a, b = ([row for row in rows if tuple(row.parts["latents"].shape) == shape] for rows in (theirs, ours))
        if not a:
            return {"latents": math.inf}
        apart = {name: _distances(a, b, name) for name in b[0].parts}
        pairs = _pairs(torch.stack(list(apart.values())).sum(dim=0))
        for name, distances in apart.items():
            largest[name] = max(largest.get(name, 0.0), *(float(distances[i, j]) for i, j in pairs))
    return largest


def _distances(a: Sequence[Row], b: Sequence[Row], name: str) -> Tensor:
    """Return the largest difference of every pair of rows, Float64[Tensor, "theirs ours"]; infinite if one lacks it."""
    if any(name not in row.parts or row.parts[name].shape != b[0].parts[name].shape for row in (*a, *b)):
        return torch.full((len(a), len(b)), math.inf, dtype=torch.float64, device="cpu")
    flat = [torch.stack([row.parts[name] for row in rows]).flatten(1).double() for rows in (a, b)]
    return torch.cdist(*flat, p=math.inf)


def _pairs(cost: Tensor) -> list[tuple[int, int]]:
    """Pair every column with a row, nearest pairs first; rows are used again only if there are too few."""
    pairs, rows, columns = [], set[int](), set[int]()
    width = cost.shape[1]
    for place in cost.flatten().argsort(stable=True).tolist():
        i, j = divmod(place, width)
        if j not in columns and (i not in rows or len(rows) == len(cost)):
            pairs.append((i, j))
            rows.add(i)
            columns.add(j)
    return pairs


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.shape == b.shape else math.inf


def _pixels(picture: Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.int16))
