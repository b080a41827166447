"""Conversion between canvas and network: gather views, split rows into micro-batches, undo permutations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.core.method.micro_batch import MicroBatch

if TYPE_CHECKING:
    from torch import Tensor

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
    patches: Patches,
    model_input: Tensor,
    branches: tuple[Branch, ...],
    row_batch: int,
    capture: int | None,
    texts: Sequence[str | None] = (),
    words: int = 0,
    sizes: SizeConditioning | None = None,
) -> list[MicroBatch]:
    """Split rows into micro-batches of at most ``row_batch`` rows: view by view, branches side by side.

    Args:
        patches: The views, in canonical order.
        model_input: One entry per view, and one for a clean key view, Float32[Tensor, "views|views+1 batch channels h
            w"].
        branches: CFG branches of each view.
        row_batch: Largest number of rows per micro-batch.
        capture: Entry of ``model_input`` whose conditional row's attention maps are needed, or None.
        texts: Texts of the views; () for the run's prompt.
        words: Number of words whose maps the captured row returns.
        sizes: Size conditioning; the stage's if None.
    """
    num_branches = len(branches)
    rows = model_input.repeat_interleave(num_branches, dim=0)
    numbers = [i if i < len(patches.views) else patches.key for i in range(len(model_input))]
    captured = None if capture is None else capture * num_branches + branches.index("cond")
    return [
        MicroBatch(
            model_input=chunk.flatten(0, 1),
            branches=[branches[(begin + i) % num_branches] for i in range(len(chunk))],
            views=[patches.views[number] for number in chosen],
            capture=[captured - begin] if captured is not None and begin <= captured < begin + len(chunk) else [],
            texts=[texts[number] for number in chosen] if texts else [],
            words=words,
            sizes=sizes,
        )
        for begin in range(0, len(rows), row_batch)
        for chunk in (rows[begin : begin + row_batch],)
        for chosen in ([numbers[(begin + i) // num_branches] for i in range(len(chunk))],)
    ]


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
