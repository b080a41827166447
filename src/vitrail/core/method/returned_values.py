"""Checks of what strategies return, against the contract of their slot, before it is used.

Types, shapes, dtypes, devices and counts are known without waiting for a device and are checked at once. Values are
read only where they are on the CPU anyway (views, permutations, texts). Those of masks and predictions are on the
device, so invalid ones are counted there and read with the checksum at the end of every step; see ``NonFiniteSearch``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vitrail.core.engine.guidance_context import Branches, subject_tensor
from vitrail.core.geometry.views import Patches, View
from vitrail.core.method.cost import Cost, UpscalingCost
from vitrail.core.schedule.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import Subject
    from vitrail.core.geometry.views import Canvas, Span
    from vitrail.core.method.calls import StrategyCall
    from vitrail.core.method.micro_batch import Branch

KNOWN_BRANCHES = ("uncond", "cond", "damped")


def kind(value: object) -> str:
    """Describe a value in a message: shape, dtype and device of a tensor, else the type."""
    import torch

    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(value.shape)} on {value.device}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def check_like(asked: StrategyCall, what: str, value: object, like: Tensor) -> Tensor:
    """Refuse a value that is not a tensor with the shape, dtype and device of another.

    Args:
        asked: The strategy that returned it.
        what: Noun for the message, e.g. "the mask".
        value: The returned value.
        like: The tensor that it must match.

    Raises:
        ShapeError: If it differs.
    """
    import torch

    wanted = (like.shape, like.dtype, like.device)
    if not isinstance(value, torch.Tensor) or (value.shape, value.dtype, value.device) != wanted:
        asked.refuse(f"must return {what} as {kind(like)}, got {kind(value)}")
    return value


def check_pair(asked: StrategyCall, meaning: str, value: object) -> tuple[object, object]:
    """Return a value if it is a pair of a result and the new state.

    Args:
        asked: The strategy that returned it.
        meaning: What the pair should be, for the message.
        value: The returned value.

    Raises:
        ShapeError: If it is no pair.
    """
    if not isinstance(value, tuple) or len(value) != 2:
        got = f"a tuple of {len(value)}" if isinstance(value, tuple) else kind(value)
        asked.refuse(f"must give {meaning}, got {got}")
    return value


def check_guided(asked: StrategyCall, subject: Subject, guided: object, point: str) -> Subject:
    """Refuse the result of a guidance that differs from its subject in type, shape, dtype or device.

    Args:
        asked: The guidance.
        subject: What it received.
        guided: What it returned.
        point: Where it acts, for the message.

    Raises:
        ShapeError: If they differ.
    """
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
    """Refuse a mask that is not one weight per cell of the view; ``outside`` checks that weights lie in [0, 1].

    Args:
        asked: The mask source.
        mask: The returned mask, or None.
        latents: Latents of the key view, Float32[Tensor, "batch channels h w"].
        shape: Height and width of the masked view, cells.

    Raises:
        ShapeError: If it differs.
    """
    if mask is None:
        return None
    return check_like(asked, "the mask", mask, latents[:, :1, :1, :1].expand(-1, -1, *shape))


def outside(mask: Tensor) -> Tensor:
    """Count the values of a mask outside [0, 1] (nan included), on its device, Int64[Tensor, ""]."""
    return (~((mask >= 0) & (mask <= 1))).sum()


def check_fused(asked: StrategyCall, fused: object, latents: Tensor) -> None:
    """Refuse the result of a fusion that is not of the canvas's shape, dtype and device.

    Args:
        asked: The fusion.
        fused: What it returned.
        latents: The canvas, Float32[Tensor, "batch channels height width"].

    Raises:
        ShapeError: If they differ.
    """
    check_like(asked, "the canvas", fused, latents)


def check_texts(asked: StrategyCall, texts: object, count: int) -> tuple[str | None, ...]:
    """Return the result of a prompting if it is a text or None per view, or an empty tuple.

    Args:
        asked: The prompting.
        texts: What it returned.
        count: Number of views.

    Raises:
        ShapeError: If it is not.
    """
    if not isinstance(texts, tuple):
        hint = "; a lone text would be taken apart into letters" if isinstance(texts, str) else ""
        asked.refuse(f"must return a tuple with a text for each of {count} views, or (), got {kind(texts)}{hint}")
    wrong = [text for text in texts if not isinstance(text, (str, type(None)))]
    if wrong:
        asked.refuse(f"must return texts or None for the prompt, got {kind(wrong[0])} among them")
    if len(texts) not in (0, count):
        asked.refuse(f"must return a text for each of {count} views, or (), got {len(texts)}")
    return texts


def check_upscaled(asked: StrategyCall, result: object, picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the result of an upscaler if it is the picture at the wanted size with values in [0, 1]; reads them.

    Args:
        asked: The upscaler.
        result: What it returned.
        picture: What it received, Float32[Tensor, "batch 3 h w"].
        size: Wanted height and width, pixels.

    Raises:
        ShapeError: If it is not.
    """
    found = check_like(asked, "the picture", result, picture[..., :1, :1].expand(-1, -1, *size))
    if wrong := int(outside(found)):
        asked.refuse(f"must return values in [0, 1], got {wrong} others of {found.numel()}")
    return found


def check_context(asked: StrategyCall, context: object) -> AbstractContextManager[object]:
    """Return the result of a rectification; raise ShapeError if it is not a context manager."""
    if not isinstance(context, AbstractContextManager):
        asked.refuse(f"must return a context manager, got {kind(context)}; in a step out of its range `nullcontext()`")
    return context


def check_granularity(asked: StrategyCall, pair: object) -> tuple[int, int]:
    """Return the result of a patching; raise ShapeError if it is not two positive integers."""
    two = pair if isinstance(pair, tuple) and len(pair) == 2 else ()
    if not two or any(not isinstance(each, int) or each < 1 for each in two):
        asked.refuse(f"must return a granularity of (height, width) in whole cells, 1 or more, got {pair!r}")
    return two


def check_branches(asked: StrategyCall, wanted: object, own: Sequence[Branch]) -> tuple[Branch, ...]:
    """Return the further branches of a guidance at "branches", each once and none of the run's own.

    Args:
        asked: The guidance.
        wanted: What it returned.
        own: The run's own branches.

    Raises:
        ShapeError: If they are not such branches.
    """
    if not isinstance(wanted, tuple):
        asked.refuse(f"must return a tuple of branches, got {kind(wanted)}")
    new = [branch for branch in KNOWN_BRANCHES if branch not in own]
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(new):
        asked.refuse(f"must return branches among {', '.join(new)}, each once, got {wanted!r}")
    return wanted


def check_flag(asked: StrategyCall, member: str, value: object) -> bool:
    """Return the answer of a yes-or-no method; raise ShapeError if it is not a bool."""
    if not isinstance(value, bool):
        asked.refuse(f"must return True or False from `{member}`, got {kind(value)}")
    return value


def check_count(asked: StrategyCall, member: str, number: object) -> int:
    """Return a number of rows; raise ShapeError if it is not a whole number from 0 on."""
    if type(number) is not int or number < 0:
        asked.refuse(f"must return a whole number from 0 on from `{member}`, got {number!r}")
    return number


def check_digest(asked: StrategyCall, digest: object) -> str:
    """Return the digest of a strategy's files; raise ShapeError if it is not a text."""
    if not isinstance(digest, str):
        asked.refuse(f"must return a text from `digest`, got {kind(digest)}")
    return digest


def check_cost(asked: StrategyCall, member: str, cost: object) -> Cost:
    """Return the cost of a guidance if all of its counts are non-negative integers.

    Args:
        asked: The guidance.
        member: Name of the method that returned it.
        cost: What it returned.

    Raises:
        ShapeError: If they are not.
    """
    if not isinstance(cost, Cost):
        asked.refuse(f"must return a Cost from `{member}`, got {kind(cost)}")
    counts = (*cost.rows.values(), cost.decodes, cost.encodes, cost.gradients, cost.upscalings)
    whole = all(type(number) is int for number in (*cost.rows, *counts))
    if not whole or any(number < 0 for number in counts) or any(cells < 1 for cells in cost.rows):
        asked.refuse(
            f"must return a Cost of whole numbers from `{member}`, of views of 1 cell or more and no count below 0, "
            f"got {cost}"
        )
    return cost


def check_upscaling_cost(asked: StrategyCall, cost: object) -> UpscalingCost:
    """Return the cost of an upscaler; raise ShapeError if its counts are not whole numbers from 0 on."""
    counts = (cost.passes, 0 if cost.peak_bytes is None else cost.peak_bytes) if isinstance(cost, UpscalingCost) else ()
    if not isinstance(cost, UpscalingCost) or any(type(each) is not int or each < 0 for each in counts):
        asked.refuse(f"must return an UpscalingCost of whole numbers from 0 on from `cost`, got {cost!r}")
    return cost


def check_lag(asked: StrategyCall, lag: object) -> int | None:
    """Return the age of a message if it is 0, 1 or None; others would be waited for without end, or never come."""
    if lag is not None and (type(lag) is not int or lag not in (0, 1)):
        asked.refuse(f"must return 0, 1 or None from `lag`, the age of the message to apply, got {lag!r}")
    return lag


# ---------------------------------------------------------------- views


def check_patches(asked: StrategyCall, patches: Patches, canvas: Canvas, shows_whole: bool) -> None:
    """Refuse views outside the canvas, or that do not cover it unless each shows the whole picture.

    Args:
        asked: The patching.
        patches: What it returned.
        canvas: The canvas, padding included.
        shows_whole: Whether each view shows the whole picture, so that a fusion may fill the rest.

    Raises:
        ShapeError: Naming the first such view or uncovered cell.
    """
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
    """Refuse a ``permutation`` that is not one along the views; values are checked only on the CPU.

    Args:
        asked: The patching.
        patches: What it returned.
        channels: Number of latent channels.

    Raises:
        ShapeError: If it has another shape or type, or names a view twice.
    """
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
    """Whether a view lies within the canvas, or goes beyond its ends only where they meet or as it says."""
    axes = ((view.vertical, canvas.height, canvas.wraps("y")), (view.horizontal, canvas.width, canvas.wraps("x")))
    return all(_keeps_to(*axis) for axis in axes)


def _keeps_to(span: Span, length: int, wraps: bool) -> bool:
    if span.limit is not None:  # it says that it leaves this axis
        return span.limit == length and not wraps
    last = span.start + (span.count - 1) * span.step
    return span.start >= 0 and span.count > 0 and (last < length or (wraps and span.length == length))


@functools.lru_cache(maxsize=64)
def uncovered(views: tuple[View, ...], height: int, width: int) -> tuple[int, int] | None:
    """Return the first cell (row, column) of a canvas that lies in no view, its context apart; None if all do.

    Args:
        views: Views that lie on it.
        height: Height of the canvas, cells.
        width: Width of the canvas, cells.
    """
    covered = [bytearray(width) for _ in range(height)]
    for piece in (piece for view in views for piece in view.written):
        mark = bytes([1]) * len(range(width)[piece.cols])
        for y in range(height)[piece.rows]:
            covered[y][piece.cols] = mark
    return next(((y, row.index(0)) for y, row in enumerate(covered) if 0 in row), None)
