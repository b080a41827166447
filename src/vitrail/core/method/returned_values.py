"""What comes back from a strategy, held against its slot's contract before anything is done with it.

Types, shapes, dtypes, devices and counts are known without waiting for a device and are checked at once. Values are
looked at only where they are on the CPU anyway (views, permutations, texts). Those of masks and predictions lie on the
device, so what is wrong with them is counted there and read with the sum that ends every step; see
``NonFiniteSearch``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vitrail.core.engine.guidance_context import Branches, subject_tensor
from vitrail.core.geometry.views import Patches, View
from vitrail.core.method.cost import Cost
from vitrail.core.schedule.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import Subject
    from vitrail.core.geometry.views import Canvas, Span
    from vitrail.core.method.calls import StrategyCall
    from vitrail.core.method.micro_batch import Branch

KNOWN_BRANCHES = ("uncond", "cond", "damped")


def kind(value: object) -> str:
    """A value in a message: shape and dtype of a tensor, else the type."""
    import torch

    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(value.shape)} on {value.device}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def check_like(asked: StrategyCall, what: str, value: object, like: Tensor) -> Tensor:
    """Refuse what is not a tensor of the shape, dtype and device of another."""
    import torch

    wanted = (like.shape, like.dtype, like.device)
    if not isinstance(value, torch.Tensor) or (value.shape, value.dtype, value.device) != wanted:
        asked.refuse(f"must return {what} as {kind(like)}, got {kind(value)}")
    return value


def check_pair(asked: StrategyCall, meaning: str, value: object) -> tuple[object, object]:
    """A pair of an answer and the new state."""
    if not isinstance(value, tuple) or len(value) != 2:
        got = f"a tuple of {len(value)}" if isinstance(value, tuple) else kind(value)
        asked.refuse(f"must give {meaning}, got {got}")
    return value


def check_guided(asked: StrategyCall, subject: Subject, guided: object, point: str) -> Subject:
    """A guidance returns what it received in kind, shape, dtype and device."""
    if not isinstance(guided, type(subject)) or type(guided) is not type(subject):
        asked.refuse(
            f"received a {type(subject).__name__} and returned a {type(guided).__name__}; guidance at point {point!r} "
            "must return what it receives"
        )
    same: Subject = guided
    if isinstance(subject, Prediction) and isinstance(guided, Prediction):
        check_like(asked, "a Prediction with the model_output", guided.model_output, subject.model_output)
        check_like(asked, "a Prediction with the latents", guided.latents, subject.latents)
    elif isinstance(subject, Branches) and isinstance(guided, Branches):
        check_like(asked, "Branches with `combined`", guided.combined, subject.combined)
    else:
        check_like(asked, "the latents", guided, subject_tensor(subject))
    return same


def check_mask(asked: StrategyCall, mask: object, latents: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A mask has one weight for each cell of the view that was asked about; that it lies in [0, 1], ``outside`` sees.

    Args:
        asked: The mask source.
        mask: Its answer.
        latents: Of the key view, Float32[Tensor, "batch channels h w"].
        shape: Height and width of the view.
    """
    if mask is None:
        return None
    return check_like(asked, "the mask", mask, latents[:, :1, :1, :1].expand(-1, -1, *shape))


def outside(mask: Tensor) -> Tensor:
    """How many values of a mask do not lie in [0, 1], on its device, Int64[Tensor, ""]."""
    return (~((mask >= 0) & (mask <= 1))).sum()


def check_fused(asked: StrategyCall, fused: object, latents: Tensor) -> None:
    """A fusion returns a canvas."""
    check_like(asked, "the canvas", fused, latents)


def check_texts(asked: StrategyCall, texts: object, count: int) -> tuple[str | None, ...]:
    """A prompting returns a text or None for each view, or an empty tuple."""
    if not isinstance(texts, tuple):
        hint = "; a lone text would be taken apart into letters" if isinstance(texts, str) else ""
        asked.refuse(f"must return a tuple with a text for each of {count} views, or (), got {kind(texts)}{hint}")
    wrong = [text for text in texts if not isinstance(text, (str, type(None)))]
    if wrong:
        asked.refuse(f"must return texts or None for the prompt, got {kind(wrong[0])} among them")
    if len(texts) not in (0, count):
        asked.refuse(f"must return a text for each of {count} views, or (), got {len(texts)}")
    return texts


def check_context(asked: StrategyCall, context: object) -> AbstractContextManager[object]:
    """A rectification returns a context manager."""
    if not isinstance(context, AbstractContextManager):
        asked.refuse(f"must return a context manager, got {kind(context)}; in a step out of its range `nullcontext()`")
    return context


def check_granularity(asked: StrategyCall, pair: object) -> tuple[int, int]:
    """A patching returns two whole numbers of cells."""
    two = pair if isinstance(pair, tuple) and len(pair) == 2 else ()
    if not two or any(not isinstance(each, int) or each < 1 for each in two):
        asked.refuse(f"must return a granularity of (height, width) in whole cells, 1 or more, got {pair!r}")
    return two


def check_branches(asked: StrategyCall, wanted: object, own: Sequence[Branch]) -> tuple[Branch, ...]:
    """A guidance at "branches" returns further branches, each once and none of the run's own."""
    if not isinstance(wanted, tuple):
        asked.refuse(f"must return a tuple of branches, got {kind(wanted)}")
    new = [branch for branch in KNOWN_BRANCHES if branch not in own]
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(new):
        asked.refuse(f"must return branches among {', '.join(new)}, each once, got {wanted!r}")
    return wanted


def check_cost(asked: StrategyCall, member: str, cost: object) -> Cost:
    """A guidance counts what it asks of networks in whole numbers, none of them below 0.

    Args:
        asked: The guidance.
        member: Which of its methods answered.
        cost: Its answer.
    """
    if not isinstance(cost, Cost):
        asked.refuse(f"must return a Cost from `{member}`, got {kind(cost)}")
    counts = (*cost.rows.values(), cost.decodes, cost.encodes, cost.gradients)
    whole = all(type(number) is int for number in (*cost.rows, *counts))
    if not whole or any(number < 0 for number in counts) or any(cells < 1 for cells in cost.rows):
        asked.refuse(
            f"must return a Cost of whole numbers from `{member}`, of views of 1 cell or more and no count below 0, "
            f"got {cost}"
        )
    return cost


# ---------------------------------------------------------------- views


def check_patches(asked: StrategyCall, patches: Patches, canvas: Canvas, shows_whole: bool) -> None:
    """Views lie on the canvas and cover it, unless each shows the whole picture, so that a fusion may fill the rest."""
    others = [view for view in patches.views if not isinstance(view, View)]
    if others:
        asked.refuse(f"must return Patches of Views, got {kind(others[0])} among them")
    stray = next((view for view in patches.views if not lies_on(view, canvas)), None)
    if stray is not None:
        asked.refuse(f"returned a view that leaves the canvas of {canvas.height}x{canvas.width} latent cells: {stray}")
    hole = None if shows_whole else uncovered(patches.views, canvas.height, canvas.width)
    if hole is not None:
        asked.refuse(
            f"returned views that leave out latent cell {hole} of a canvas of {canvas.height}x{canvas.width}; together "
            "they must cover it"
        )


def check_permutation(asked: StrategyCall, patches: Patches, channels: int) -> None:
    """Which view every element comes from is a permutation of the views; drawn on the CPU, so it can be looked at."""
    import torch

    order = patches.permutation
    if order is None:
        return
    count, (height, width) = len(patches.views), patches.views[0].shape
    if order.dtype != torch.int64 or order.ndim != 5 or (len(order), *order.shape[-2:]) != (count, height, width):
        asked.refuse(
            f"must return a permutation as int64 (views, #batch, #channels, h, w) = ({count}, 1, 1 or {channels}, "
            f"{height}, {width}), got {kind(order)}"
        )
    if order.shape[2] not in (1, channels):
        asked.refuse(f"must return a permutation for 1 or {channels} channels, got {order.shape[2]}")
    if order.device.type == "cpu":
        numbers = torch.arange(count, dtype=order.dtype, device=order.device).view(-1, 1, 1, 1, 1)
        if not torch.equal(order.sort(0).values, numbers.expand_as(order)):
            asked.refuse("returned a permutation that takes a view twice somewhere, and leaves another out")


def lies_on(view: View, canvas: Canvas) -> bool:
    """Whether a view keeps to the canvas, or goes across its ends where they meet."""
    axes = ((view.vertical, canvas.height, canvas.wraps("y")), (view.horizontal, canvas.width, canvas.wraps("x")))
    return all(_keeps_to(*axis) for axis in axes)


def _keeps_to(span: Span, length: int, wraps: bool) -> bool:
    last = span.start + (span.count - 1) * span.step
    return span.start >= 0 and span.count > 0 and (last < length or (wraps and span.length == length))


@functools.lru_cache(maxsize=64)
def uncovered(views: tuple[View, ...], height: int, width: int) -> tuple[int, int] | None:
    """The first cell (row, column) of a canvas that lies in no view; None if all are covered.

    Args:
        views: That lie on it.
        height: Of the canvas in cells.
        width: Of the canvas in cells.
    """
    covered = [bytearray(width) for _ in range(height)]
    for piece in (piece for view in views for piece in view.pieces):
        mark = bytes([1]) * len(range(width)[piece.cols])
        for y in range(height)[piece.rows]:
            covered[y][piece.cols] = mark
    return next(((y, row.index(0)) for y, row in enumerate(covered) if 0 in row), None)
