"""Features of a U-Net that are halved once more on the way down and brought back on the way up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from attrs import frozen

from vitrail.backbones.rectification.module_hooks import Hook
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Tensor

CONTROL = ("down_block_additional_residuals", "down_intrablock_additional_residuals")


@frozen(eq=False)
class Level:
    """A block of the encoder and the one of the decoder that works on features of the same size.

    Attributes:
        number: In the encoder, 0 for the highest resolution.
        down: The block of the encoder.
        up: The block of the decoder.
        up_number: Of that block.
        back: Name and module of the upsampler that leads back to it; None where no downsampler leads away.
    """

    number: int
    down: Any
    up: Any
    up_number: int
    back: tuple[str, Any] | None


def encoder_levels(network: Any) -> dict[str, Level]:
    """The levels of a U-Net, by the names of their blocks in the encoder.

    Raises:
        CapabilityError: If an upsampler takes no size, so that what it leads back to must be twice as large.
    """
    from diffusers.models.upsampling import Upsample2D

    levels, count = {}, len(network.down_blocks)
    for number, down in enumerate(network.down_blocks):
        back, last = None, count - 1 - number
        if getattr(down, "downsamplers", None) is not None:
            name, upsampler = f"up_blocks.{last - 1}.upsamplers.0", network.up_blocks[last - 1].upsamplers[0]
            if not isinstance(upsampler, Upsample2D) or upsampler.use_conv_transpose:
                raise CapabilityError(
                    f"features that are halved once more need upsamplers that resize to a given size, and {name} "
                    "does not; use another network, or leave raunet out"
                )
            back = name, upsampler
        levels[f"down_blocks.{number}"] = Level(number, down, network.up_blocks[last], last, back)
    return levels


def matched_sizes(levels: Iterable[Level]) -> list[Hook]:
    """Every upsampler leads to the size of the skip that awaits it, also where that is not twice its own."""
    hooks = []
    for level in levels:
        if level.back is not None:
            size = list[int]()
            hooks.append(Hook(f"down_blocks.{level.number}", level.down, after=_remember(size)))
            hooks.append(Hook(*level.back, before=_enlarge_to(size)))
    return hooks


def strided(level: Level) -> Hook:
    """The downsampler of a level with a stride of 4 and its taps 2 cells apart: it does not see every other cell."""

    def skip(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (args[0][..., ::2, ::2], *args[1:]), kwargs

    return Hook(f"down_blocks.{level.number}.downsamplers.0", level.down.downsamplers[0], before=skip)


def pooled(level: Level) -> list[Hook]:
    """The features of a level halved after its first layer, and back before its last skip is joined."""
    import torch.nn.functional as F

    size = list[int]()

    def shrink(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        size[:] = _features(output).shape[-2:]
        return _with(output, F.avg_pool2d(_features(output), 2, ceil_mode=True))

    def grow(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return _with(output, F.interpolate(_features(output), size=tuple(size), mode="bicubic"))

    first = _layer(f"down_blocks.{level.number}", level.down, 0)
    before_last = _layer(f"up_blocks.{level.up_number}", level.up, len(level.up.resnets) - 2)
    return [Hook(*first, after=shrink), Hook(*before_last, after=grow)]


def refuse_control(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what a control network adds: it fits the sizes that the plain network has.

    Raises:
        CapabilityError: At the first call that comes with it.
    """
    if any(kwargs.get(name) is not None for name in CONTROL):
        raise CapabilityError(
            "raunet changes the sizes of features inside the network, to which a control network or an adapter for "
            "pictures adds its own; use a pipeline without it, or leave raunet out"
        )


def _layer(name: str, block: Any, number: int) -> tuple[str, Any]:
    """A residual block and what follows it, by the name of what gives its answer."""
    part = "attentions" if getattr(block, "attentions", None) else "resnets"
    return f"{name}.{part}.{number}", getattr(block, part)[number]


def _remember(size: list[int]) -> Any:
    def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]) -> None:
        size[:] = output[1][-2].shape[-2:]  # of the last skip before the downsampler's

    return remember


def _enlarge_to(size: list[int]) -> Any:
    def enlarge(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (args[0], tuple(size)), {}

    return enlarge


def _features(output: Any) -> Tensor:
    """What a layer answers: transformers wrap it, Float[Tensor, "batch channels h w"]."""
    features: Tensor = output[0] if isinstance(output, tuple) else output
    return features


def _with(output: Any, features: Tensor) -> Any:
    return (features, *output[1:]) if isinstance(output, tuple) else features
