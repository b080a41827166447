"""What a run asks of its networks, counted before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from attrs import field, frozen

ATTENTION = 0.125  # share of a forward at the training size that grows with the square of its area: SDXL's U-Net


def _counter(counts: Mapping[int, int]) -> Mapping[int, int]:
    return {cells: number for cells, number in sorted(counts.items()) if number}


@frozen(kw_only=True)
class Cost:
    """Forwards and VAE calls.

    Attributes:
        rows: Rows that the network sees, by the latent cells of their view.
        decodes: Pictures that the VAE decodes, those of single views among them.
        encodes: Pictures that it encodes.
        gradients: Views that are differentiated: each a way back through decoder and network, besides the row and the
            picture that are counted with the others.
    """

    rows: Mapping[int, int] = field(factory=dict, converter=_counter)
    decodes: int = 0
    encodes: int = 0
    gradients: int = 0

    @property
    def model_calls(self) -> int:
        """Rows of all sizes."""
        return sum(self.rows.values())

    def evaluations(self, native_cells: int, branches: int = 2, attention: float = ATTENTION) -> float:
        """The cost in forwards of one view of the training size with all its branches.

        Args:
            native_cells: Latent cells of a training picture.
            branches: Of a view.
            attention: Share of such a forward that is quadratic in the area; the rest is linear.
        """
        areas = ((cells / native_cells, number) for cells, number in self.rows.items())
        return sum(number * ((1 - attention) * a + attention * a * a) for a, number in areas) / branches

    @classmethod
    def total(cls, costs: Iterable[Cost]) -> Cost:
        """Of several."""
        rows: Counter[int] = Counter()
        decodes = encodes = gradients = 0
        for cost in costs:
            rows.update(cost.rows)
            decodes, encodes = decodes + cost.decodes, encodes + cost.encodes
            gradients += cost.gradients
        return cls(rows=rows, decodes=decodes, encodes=encodes, gradients=gradients)
