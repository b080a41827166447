"""Resizing between phases: the picture so far, resized, with the noise of the step where the next phase begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from vitrail.core.engine.guidance_context import Start
from vitrail.core.geometry.continuation import Continuation

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vitrail.core.engine.guidance_context import Vae
    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.method.cascade import Edges
    from vitrail.core.schedule.phase import Phase
    from vitrail.core.schedule.streams import Streams

PADDING: Mapping[Edges, str] = {"repeated": "replicate", "mirrored": "reflect"}
BLUR = (0.25, 0.5, 0.25)  # binomial kernel; not a convolution, which a device may compute at lower precision
REACH = 3  # cells on one side that bicubic interpolation reads, plus one; bilinear reads fewer


def without_padding(latents: Tensor, canvas: Canvas) -> Tensor:
    """Crop the padding, Float32[Tensor, "batch channels height width"]."""
    height, width = canvas.inner
    return latents[..., :height, :width]


def inside(view: View, canvas: Canvas) -> tuple[int, int]:
    """Return height and width, in cells, of the part of a view that is not padding."""
    pairs = zip((view.vertical, view.horizontal), canvas.inner, strict=True)
    down, right = (min(span.count, -(-(length - span.start) // span.step)) for span, length in pairs)
    return down, right


def grown_latents(latents: Tensor, before: Canvas, canvas: Canvas) -> Tensor:
    """Resize latents bicubically, across wrapped edges; the padding repeats the edge.

    Args:
        latents: Float32[Tensor, "batch channels height width"] on the canvas ``before``.
        before: Canvas of the latents.
        canvas: Canvas of the result.
    """
    import torch.nn.functional as F

    grown = bicubic(without_padding(latents, before), canvas.inner, canvas)
    return F.pad(grown, (0, canvas.pad_width, 0, canvas.pad_height), mode="replicate")


def bicubic(values: Tensor, size: tuple[int, int], canvas: Canvas) -> Tensor:
    """Resize values bicubically; see ``resized``.

    Args:
        values: Cells or pixels, Float32[Tensor, "batch channels h w"].
        size: Wanted height and width.
        canvas: Gives the axes whose ends meet.

    Returns:
        Float32[Tensor, "batch channels *size"].
    """
    return resized(values, size, canvas, "bicubic")


def resized(values: Tensor, size: tuple[int, int], canvas: Canvas, mode: Literal["bicubic", "bilinear"]) -> Tensor:
    """Resize values, Float32[Tensor, "batch channels *size"].

    Where edges meet, values are taken from across them, so that there is no seam.

    Args:
        values: Cells or pixels, Float32[Tensor, "batch channels h w"].
        size: Wanted height and width.
        canvas: Gives the axes whose ends meet.
        mode: Interpolation.
    """
    import torch.nn.functional as F

    across = Continuation.of(values.shape[-2:], size, canvas.wrap, REACH)
    grown = F.interpolate(across.extend(values), across.after, mode=mode, align_corners=False)
    return across.crop(grown)


def sharpened(grown: Tensor, sharpen: float, canvas: Canvas, edges: Edges = "repeated") -> Tensor:
    """Sharpen an enlarged picture, Float32[Tensor, "batch 3 Height Width"] in [-1, 1].

    This is unsharp masking, as in DiffuseHigh (Kim et al., 2024, https://arxiv.org/abs/2406.18459), sec. 3.3; the
    blur is fixed, so that the picture is a function of the seed. As in the authors' code a sharpened picture may leave
    [-1, 1]; without sharpening it is clipped.

    Args:
        grown: About in [0, 1], Float32[Tensor, "batch 3 Height Width"].
        sharpen: Weight of the difference to the blurred picture.
        canvas: Gives the axes whose ends meet.
        edges: See ``blurred``.
    """
    grown = grown + sharpen * (grown - blurred(grown, canvas, edges)) if sharpen else grown.clamp(0, 1)
    return 2 * grown - 1


def blurred(picture: Tensor, canvas: Canvas, edges: Edges = "repeated") -> Tensor:
    """Blur a picture with a 3x3 binomial kernel; at edges that do not meet it is repeated or mirrored."""
    import torch.nn.functional as F

    def mode(axis: Literal["x", "y"]) -> str:
        return "circular" if canvas.wraps(axis) else PADDING[edges]

    outer, inner, _ = BLUR
    edged = F.pad(F.pad(picture, (0, 0, 1, 1), mode=mode("y")), (1, 1, 0, 0), mode=mode("x"))
    rows = outer * (edged[..., :-2, :] + edged[..., 2:, :]) + inner * edged[..., 1:-1, :]
    return outer * (rows[..., :-2] + rows[..., 2:]) + inner * rows[..., 1:-1]


def grow(
    latents: Tensor,
    before: Phase,
    phase: Phase,
    vae: Vae | None,
    streams: Streams,
    upscale: Callable[[Tensor], Tensor] | None = None,
) -> Start:
    """Return the beginning of a phase.

    Args:
        latents: Clean latents on the canvas of the phase before.
        before: The phase before.
        phase: The phase that begins.
        vae: Needed for ``enter.resize = "pixels"``.
        streams: Source of the noise, drawn for the whole canvas.
        upscale: Enlarges a picture in [0, 1] to the size of the phase; bicubic interpolation if None.
    """
    assert phase.enter is not None
    picture = None
    if phase.enter.resize == "pixels":
        assert vae is not None
        decoded = vae.decode(latents, before.canvas, phase.enter.clip == "decoded")
        enlarged = bicubic(decoded, phase.picture, phase.canvas) if upscale is None else upscale(decoded)
        picture = sharpened(enlarged, phase.enter.sharpen, phase.canvas, phase.enter.edges)
        clean = vae.encode(picture, phase.canvas)
    else:
        clean = grown_latents(latents, before.canvas, phase.canvas)
    return Start(clean, phase_noise(clean, phase, streams), picture)


def phase_noise(clean: Tensor, phase: Phase, streams: Streams) -> Tensor:
    """Draw the noise of a phase, Float32[Tensor, "batch channels height width"].

    Args:
        clean: Latents of that shape, on the device of the result.
        phase: The phase; its number keys the stream.
        streams: The run's random streams.
    """
    return streams.normal(tuple(clean.shape), "phase-noise", phase.number).to(clean.device)


def moments(latents: Tensor, canvas: Canvas) -> Tensor:
    """Return mean and deviation over all elements of the picture, without padding, Float32[Tensor, "2"]."""
    import torch

    picture = without_padding(latents, canvas)
    return torch.stack([picture.mean(), picture.std()])


def renormalised(latents: Tensor, wanted: Tensor, canvas: Canvas) -> Tensor:
    """Give latents another mean and deviation, as DemoFusion's code does after each phase.

    Args:
        latents: Float32[Tensor, "batch channels height width"].
        wanted: Mean and deviation, Float32[Tensor, "2"].
        canvas: Gives the padding, which is not measured.
    """
    mean, deviation = moments(latents, canvas)
    scaled: Tensor = (latents - mean) / deviation * wanted[1] + wanted[0]
    return scaled
