"""Conversion between canvas and network: gather views, split rows into micro-batches, undo permutations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from vitrail.core.method.micro_batch import MicroBatch

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.asked import AskedEntry
    from vitrail.core.geometry.views import Patches, View
    from vitrail.core.method.micro_batch import Branch, SizeConditioning
    from vitrail.core.method.stage import ViewGroup
    from vitrail.core.schedule.step import Step


def gather_views(latents: Tensor, views: Sequence[View]) -> Tensor:
    """Read views from the canvas.

    Args:
        latents: Float32[Tensor, "batch channels height width"].
        views: Views of one shape.

    Returns:
        Float32[Tensor, "views batch channels h w"].
    """
    import torch

    return torch.stack([view.read(latents) for view in views])


def split_rows(
    asked: Sequence[AskedEntry],
    model_input: Tensor,
    branches: tuple[Branch, ...],
    row_batch: int,
    sizes: SizeConditioning | None = None,
) -> list[MicroBatch]:
    """Split rows into micro-batches of at most ``row_batch`` rows: entry by entry, branches side by side.

    A micro-batch has at most one row whose attention maps are captured, since texts differ in their words.

    Args:
        asked: View and text of every entry of the input, in canonical order.
        model_input: Float32[Tensor, "asked batch channels h w"].
        branches: CFG branches of each entry.
        row_batch: Largest number of rows per micro-batch.
        sizes: Size conditioning; the stage's if None.
    """
    num_branches, cond = len(branches), branches.index("cond") if "cond" in branches else 0
    rows = model_input.repeat_interleave(num_branches, dim=0)
    captured = [number * num_branches + cond for number, each in enumerate(asked) if each.is_captured]
    own_texts = any(each.text is not None for each in asked)
    own_negatives = any(each.negative is not None for each in asked)
    batches = []
    for begin, end in pairwise(cuts_of(len(rows), row_batch, captured)):
        chosen = [asked[row // num_branches] for row in range(begin, end)]
        batches.append(
            MicroBatch(
                model_input=rows[begin:end].flatten(0, 1),
                branches=[branches[row % num_branches] for row in range(begin, end)],
                views=[each.view for each in chosen],
                capture=[row - begin for row in captured if begin <= row < end],
                texts=[each.text for each in chosen] if own_texts else [],
                negatives=[each.negative for each in chosen] if own_negatives else [],
                words=max((each.words for each in chosen if each.is_captured), default=0),
                sizes=sizes,
            )
        )
    return batches


def cuts_of(count: int, row_batch: int, captured: Sequence[int]) -> list[int]:
    """Return where micro-batches begin, and the end of the last.

    Args:
        count: Number of rows.
        row_batch: Largest number of rows per micro-batch.
        captured: Rows of which no two may be in one micro-batch, rising.
    """
    cuts = [0]
    while cuts[-1] < count:
        inside = [row for row in captured if cuts[-1] <= row < cuts[-1] + row_batch]
        cuts.append(min(count, cuts[-1] + row_batch, *inside[1:2]))
    return cuts


def permute_views(views: Tensor, patches: Patches) -> Tensor:
    """Permute elements between views, and append a clean copy of the key view if needed.

    Args:
        views: Float32[Tensor, "views batch channels h w"].
        patches: The views with their permutation, if any.

    Returns:
        One entry per view, and one for a clean key view, Float32[Tensor, "views|views+1 batch channels h w"].
    """
    import torch

    permuted = views
    if patches.permutation is not None:
        permuted = views.take_along_dim(patches.permutation.to(views.device).expand_as(views), dim=0)
    if patches.clean_key:
        permuted = torch.cat([permuted, views[patches.key : patches.key + 1]])
    return permuted


def restore_order(output: Tensor, patches: Patches) -> Tensor:
    """Undo the permutation of a prediction, and replace the key view's by the clean copy's.

    Args:
        output: Float32[Tensor, "views|views+1 batch channels h w"].
        patches: The views with the permutation of the input.

    Returns:
        Float32[Tensor, "views batch channels h w"].
    """
    restored = output[: len(patches.views)]
    if patches.permutation is not None:
        order = patches.permutation.to(restored.device).expand_as(restored)
        restored = restored.new_empty(restored.shape).scatter_(0, order, restored)
    if patches.clean_key:
        restored = restored.clone() if patches.permutation is None else restored
        restored[patches.key] = output[-1]
    return restored


def combine_branches(rows: Tensor, guidance_scale: float, guidance_rescale: float = 0.0) -> Tensor:
    """Apply classifier-free guidance, ``uncond + scale (cond - uncond)``; Ho and Salimans, 2022, eq. 6.

    Args:
        rows: One branch, or uncond and cond, Float32[Tensor, "views branches batch channels h w"].
        guidance_scale: Weight of the difference.
        guidance_rescale: Share of the added contrast that is undone, in [0, 1]; Lin et al., 2023,
            https://arxiv.org/abs/2305.08891, sec. 3.4.

    Returns:
        Float32[Tensor, "views batch channels h w"].
    """
    if rows.shape[1] == 1:
        return rows[:, 0]
    uncond, cond = rows[:, 0], rows[:, 1]
    return rescaled(uncond + guidance_scale * (cond - uncond), cond, guidance_rescale)


def rescaled(guided: Tensor, cond: Tensor, guidance_rescale: float) -> Tensor:
    """Undo part of the contrast that guidance adds; a rescale of 0 is bit-identical.

    Args:
        guided: Output after guidance, Float32[Tensor, "views batch channels h w"].
        cond: Output of the conditional branch, of the same shape.
        guidance_rescale: See ``combine_branches``.
    """
    if guidance_rescale == 0:
        return guided
    axes = tuple(range(2, cond.ndim))
    flat = guided * (cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
    return guidance_rescale * flat + (1 - guidance_rescale) * guided


def mix_groups(outputs: Sequence[Tensor], extra_views: Sequence[ViewGroup], step: Step) -> Tensor:
    """Mix the canvas predictions of all view groups; the main group has the remaining weight.

    Args:
        outputs: One network output per group, Float32[Tensor, "batch channels height width"].
        extra_views: The further groups, with their weights.
        step: Gives the weights' ramps.
    """
    mixed = outputs[0]
    if extra_views:
        weights = [group.weight * step.ramp(group.ramp) ** group.power for group in extra_views]
        mixed = (1.0 - sum(weights)) * outputs[0]
        for weight, output in zip(weights, outputs[1:], strict=True):
            mixed = mixed + weight * output
    return mixed
