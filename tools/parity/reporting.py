"""What is printed and written of comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict, field, frozen

from vitrail.sampling.authors_code import authors_codes

from .entries import Entry
from .recordings import Recording

if TYPE_CHECKING:
    from .ours import Outcome

HEAD = (
    "| method | authors' commit | steps | rows, theirs / ours | first difference | latents | picture, of 255 | result |"
)
RULE = "|---|---|--:|--:|---|--:|--:|---|"


@frozen(kw_only=True, eq=False)
class Line:
    """What came of one method.

    Attributes:
        entry: The method.
        recording: The authors' run, if there was one.
        outcome: The comparison, if there was one.
        draws: How draws differ, one text each.
        refused: Why there was no comparison; "" if there was, or draws differ.
    """

    entry: Entry
    recording: Recording | None = None
    outcome: Outcome | None = None
    draws: tuple[str, ...] = field(default=())
    refused: str = ""

    @property
    def result(self) -> str:
        """``equal``, ``differs``, ``draws differ`` or ``not compared``."""
        if self.outcome is not None:
            return "equal" if self.outcome.comparison.is_equal else "differs"
        return "draws differ" if self.draws else "not compared"

    @property
    def row(self) -> str:
        """A row of the table."""
        commit = self.recording.commit if self.recording else "-"
        if self.outcome is None:
            return f"| {self.entry.method} | {commit} | - | - | - | - | - | {self.result} |"
        made = self.outcome.comparison
        theirs, ours = made.rows
        parts = [commit, f"{len(made.steps)}", f"{theirs} / {ours}", made.first or "none"]
        numbers = [f"{made.latents:.3g} (deviation {made.deviation:.3g})", f"{made.picture:g}"]
        return f"| {' | '.join([self.entry.method, *parts, *numbers, self.result])} |"

    @property
    def details(self) -> list[str]:
        """What to know besides the row."""
        told = [f"refused: {self.refused}"] if self.refused else []
        told += [f"draws: {each}" for each in self.draws]
        if self.recording is not None:
            kinds = Counter(draw.kind for draw in self.recording.draws)
            told.append("the authors drew " + (", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "nothing"))
        if self.outcome is not None:
            streams = Counter(each.partition(" ")[0] for each in self.outcome.given)
            told.append("given to " + (", ".join(f"{name} ({n})" for name, n in streams.items()) or "no stream"))
        known = authors_codes().get(self.entry.method)
        if known is not None:
            told.append(f"known: equal {known.equal}; largest difference: {known.largest}")
        return told + [f"note: {note}" for note in self.entry.notes]

    @property
    def table(self) -> dict[str, Any]:
        """Everything as plain data; what is infinite is None."""
        made = self.outcome.comparison if self.outcome else None
        recorded = self.recording
        return {
            "method": self.entry.method,
            "result": self.result,
            "refused": self.refused,
            "draws_differ": list(self.draws),
            "commit": recorded.commit if recorded else None,
            "versions": recorded.versions if recorded else None,
            "call": recorded.call if recorded else None,
            "draws": [str(draw) for draw in recorded.draws] if recorded else None,
            "given": list(self.outcome.given) if self.outcome else None,
            "first_difference": made.first if made else None,
            "comparison": _finite(asdict(made)) if made else None,
        }


def text_of(lines: Sequence[Line]) -> str:
    """Return the table of all methods, and under it what to know of each."""
    told = [HEAD, RULE, *(line.row for line in lines)]
    for line in lines:
        told += ["", f"{line.entry.method}:", *(f"  {each}" for each in line.details)]
    return "\n".join(told) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
