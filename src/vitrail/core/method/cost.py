"""Costs: the network and VAE calls of a run, counted before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from attrs import field, frozen

ATTENTION = 0.125  # share of a forward at the training size that is quadratic in the area, of SDXL's U-Net


def _counter(counts: Mapping[int, int]) -> Mapping[int, int]:
    return {cells: number for cells, number in sorted(counts.items()) if number}


@frozen(kw_only=True)
class Cost:
    """Numbers of forwards and VAE calls.

    Attributes:
        rows: Number of rows that the network sees, by the number of latent cells of their view.
        decodes: Number of pictures that the VAE decodes, those of single views included.
        encodes: Number of pictures that the VAE encodes.
        gradients: Number of views that are differentiated: one backward pass through decoder and network each; their
            forwards are counted in ``rows`` and ``decodes``.
        upscalings: Number of pictures that an upscaler enlarges.
    """

    rows: Mapping[int, int] = field(factory=dict, converter=_counter)
    decodes: int = 0
    encodes: int = 0
    gradients: int = 0
    upscalings: int = 0

    @property
    def model_calls(self) -> int:
        """Number of rows of all sizes."""
        return sum(self.rows.values())

    def evaluations(self, native_cells: int, branches: int = 2, attention: float = ATTENTION) -> float:
        """Return the cost in units of one view of the training size with all its branches.

        Args:
            native_cells: Latent cells of a training picture.
            branches: CFG branches of a view.
            attention: Share of such a forward that is quadratic in the area; the rest is linear.
        """
        areas = ((cells / native_cells, number) for cells, number in self.rows.items())
        return sum(number * ((1 - attention) * a + attention * a * a) for a, number in areas) / branches

    @classmethod
    def total(cls, costs: Iterable[Cost]) -> Cost:
        """Return the sum of several costs."""
        rows: Counter[int] = Counter()
        decodes = encodes = gradients = upscalings = 0
        for cost in costs:
            rows.update(cost.rows)
            decodes, encodes = decodes + cost.decodes, encodes + cost.encodes
            gradients, upscalings = gradients + cost.gradients, upscalings + cost.upscalings
        return cls(rows=rows, decodes=decodes, encodes=encodes, gradients=gradients, upscalings=upscalings)


@frozen(kw_only=True)
class UpscalingCost:
    """Work of an upscaler on one picture.

    Attributes:
        passes: Number of times that its network sees the picture; 0 without a network.
        peak_bytes: Memory at the most, weights included; None if unknown.
    """

    passes: int = 0
    peak_bytes: int | None = None
