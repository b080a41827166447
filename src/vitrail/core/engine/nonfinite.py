"""Search for the origin of non-finite values: sums of a step's results, read only if its end is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from vitrail.core.engine.guidance_context import subject_tensor
from vitrail.errors import PredictionError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import Branches
    from vitrail.core.geometry.views import Patches, Span
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.method.protocols import Guidance
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step

MOST = 4  # number of views named in a message
NETWORK = "try float32 or bfloat16 (--dtype), and look at the weights of the model and its adapters"
WEAKER = "try a weaker one"
GIVEN = "look at the callback, or at the latents that were given"
SCHEDULER = "try another scheduler, more steps or a lower guidance scale"


@frozen(eq=False)
class Made:
    """One result of a step.

    Attributes:
        what: Name of the result in the message.
        advice: Remedy if it is the first non-finite result.
        sums: Return the sum of every part, Float32[Tensor, "parts"].
        name: Name of a part by its number; None for a single part without a name.
    """

    what: str
    advice: str
    sums: Callable[[], Tensor]
    name: Callable[[int], str] | None = None

    def broken_sync(self) -> list[int]:
        """Return the numbers of the non-finite parts; waits for the device."""
        finite: list[bool] = self.sums().isfinite().tolist()
        return [number for number, is_finite in enumerate(finite) if not is_finite]

    def text_of(self, broken: Sequence[int]) -> str:
        """Return the message for the parts ``broken``."""
        if self.name is None:
            return f"{self.what}; {self.advice}"
        names = "; of ".join(self.name(number) for number in broken[:MOST])
        more = f"; and of {len(broken) - MOST} more" if len(broken) > MOST else ""
        return f"{self.what} of {names}{more}; {self.advice}"


@define(eq=False)
class NonFiniteSearch:
    """Sums of the results of one step, in order; a sum is not finite if one of its values is not.

    Attributes:
        cell: Side of a latent cell in pixels.
        made: Results so far.
        claims: Counts of values that violate a contract, each with its message.
    """

    cell: int = 1
    made: list[Made] = field(factory=list)
    claims: list[tuple[Tensor, str]] = field(factory=list)

    def add(self, what: str, tensor: Tensor, advice: str) -> None:
        """Record one result.

        Args:
            what: Name of the result in the message.
            tensor: Any shape.
            advice: Remedy if it is the first non-finite result.
        """
        self._note(what, advice, [_sums(tensor, 1)])

    def add_rows(
        self,
        patches: Patches,
        group: int,
        batches: Sequence[MicroBatch],
        answers: Sequence[ModelOutput],
        entries: Sequence[int],
    ) -> None:
        """Record the network's outputs; on a rank with only its own, zeros replace the others'.

        Args:
            patches: The views, in canonical order.
            group: Number of the view group; 0 is the stage's own.
            batches: The micro-batches.
            answers: Their outputs.
            entries: Number of the view of every question, the number of views for a clean key view; each question has
                one row a branch.
        """
        branches = [branch for rows in batches for branch in rows.branches]
        texts = [text for rows in batches for text, _ in rows.asked_with]
        num_branches = len(branches) // len(entries)

        def name(number: int) -> str:
            view = view_name(patches, entries[number // num_branches], group, self.cell)
            text = "" if texts[number] is None else f", text {texts[number]!r}"
            return f"{view}{text}, branch {branches[number]}"

        pairs = zip(batches, answers, strict=True)
        sums = [_sums(answer.model_output, len(rows.views)) for rows, answer in pairs]
        self._note("the network's prediction", NETWORK, sums, name)

    def add_views(self, what: str, patches: Patches, group: int, views: Tensor) -> None:
        """Record one result of every view.

        Args:
            what: Name of the result in the message.
            patches: The views, in canonical order.
            group: Number of the view group; 0 is the stage's own.
            views: Float32[Tensor, "views batch channels h w"].
        """

        def name(number: int) -> str:
            return view_name(patches, number, group, self.cell)

        self._note(what, WEAKER, [_sums(views, len(views))], name)

    def add_guided(self, guidance: Guidance, subject: Tensor | Prediction | Branches, patches: Patches | None) -> None:
        """Record the result of a guidance.

        Args:
            guidance: The strategy.
            subject: What it returned.
            patches: The views, if the subject has one entry per view; else None.
        """
        what = f"guidance {type(guidance).__name__}"
        tensor = subject_tensor(subject)
        if patches is None:
            self.add(what, tensor, WEAKER)
        else:
            self.add_views(what, patches, 0, tensor)

    def add_message(self, fetch: Callable[[], Tensor | None]) -> None:
        """Record how to fetch the message that this rank's views followed, if they followed one."""
        import torch

        def sums() -> Tensor:
            message = fetch()
            return torch.zeros(1, dtype=torch.float32, device="cpu") if message is None else _sums(message, 1)

        self.made.append(Made("the message of the key view, which another rank may have", NETWORK, sums))

    def claim(self, broken: Tensor, text: str) -> None:
        """Record a count of values that violate a contract; read once, at the end of the step.

        Args:
            broken: The count, on any device, Int64[Tensor, ""].
            text: Beginning of the error if the count is not 0.
        """
        self.claims.append((broken, text))

    def _note(self, what: str, advice: str, sums: Sequence[Tensor], name: Callable[[int], str] | None = None) -> None:
        import torch

        self.made.append(Made(what, advice, lambda: torch.cat(list(sums)), name))

    def check_sync(self, step: Step, latents: Tensor) -> None:
        """Raise if the step's latents are not finite; waits for the device.

        Args:
            step: The step just done.
            latents: The canvas after it, Float32[Tensor, "batch channels height width"].

        Raises:
            ShapeError: If a recorded count is not 0.
            PredictionError: Naming the first non-finite result: views and branches, or the part of the step.
        """
        import torch

        total = latents.sum()
        total_read, *broken = torch.stack([total, *(count.to(total) for count, _ in self.claims)]).tolist()
        for count, (_, text) in zip(broken, self.claims, strict=True):
            if count:
                raise ShapeError(f"{text}: {int(count)} values")
        if not math.isfinite(total_read) and not bool(latents.isfinite().all()):
            where = f"step {step.index + 1} of {step.num_steps} (stage {step.stage + 1}, timestep {step.timestep:g})"
            raise PredictionError(f"{where} gave latents that are not finite; first: {self._blame()}")

    def _blame(self) -> str:
        found = ((made, made.broken_sync()) for made in self.made)
        first = next(((made, broken) for made, broken in found if broken), None)
        return first[0].text_of(first[1]) if first else f"the scheduler's step; {SCHEDULER}"


def view_name(patches: Patches, index: int, group: int, cell: int) -> str:
    """Describe a view in a message: its number, its latent cells and its pixels.

    Args:
        patches: The views, in canonical order.
        index: Number of the view; the number of views for the clean copy of the key view.
        group: Number of the view group; 0 is the stage's own.
        cell: Side of a latent cell in pixels.
    """
    is_copy = index == len(patches.views)
    number = patches.key if is_copy else index
    down, right = patches.views[number].vertical, patches.views[number].horizontal
    what = f"{'the clean copy of ' * is_copy}view {number} of {len(patches.views)}"
    where = f" in view group {group}" if group else ""
    every = f", every {down.step} by {right.step}" if max(down.step, right.step) > 1 else ""
    cells = f"rows {_ends(down, 1)}, columns {_ends(right, 1)}{every}"
    return f"{what}{where} ({cells}; pixels {_ends(down, cell)} x {_ends(right, cell)})"


def _sums(tensor: Tensor, parts: int) -> Tensor:
    import torch

    return tensor.reshape(parts, -1).sum(1, dtype=torch.float32)


def _ends(span: Span, cell: int) -> str:
    return f"{span.start * cell}-{(span.start + (span.count - 1) * span.step + 1) * cell - 1}"
