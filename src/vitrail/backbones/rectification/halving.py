"""Features of a U-Net that are halved once more in the encoder and enlarged again in the decoder."""

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
    """A block of the encoder and the block of the decoder with features of the same size.

    Attributes:
        number: Number in the encoder, 0 for the highest resolution.
        down: The block of the encoder.
        up: The block of the decoder.
        up_number: Number of that block.
        back: Name and module of the upsampler that restores the level's size; None for the last level.
    """

    number: int
    down: Any
    up: Any
    up_number: int
    back: tuple[str, Any] | None


def encoder_levels(network: Any) -> dict[str, Level]:
    """Return the levels of a U-Net, by the names of their blocks in the encoder.

    Raises:
        CapabilityError: If an upsampler cannot resize to a given size.
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
    """Return hooks that make every upsampler resize to the size of the next skip, also if that is not twice its own."""
    hooks = []
    for level in levels:
        if level.back is not None:
            size = list[int]()
            hooks.append(Hook(f"down_blocks.{level.number}", level.down, after=_remember(size)))
            hooks.append(Hook(*level.back, before=_enlarge_to(size)))
    return hooks


def strided(level: Level) -> Hook:
    """Return a hook that gives a downsampler a stride of 4 and taps 2 cells apart, by dropping every other cell."""

    def skip(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (args[0][..., ::2, ::2], *args[1:]), kwargs

    return Hook(f"down_blocks.{level.number}.downsamplers.0", level.down.downsamplers[0], before=skip)


def pooled(level: Level) -> list[Hook]:
    """Return hooks that halve a level's features after its first layer, and enlarge them before its last skip."""
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
    """Refuse residuals of a control network, which fit the sizes of the unchanged network; a forward pre-hook.

    Raises:
        CapabilityError: At the first call that has them.
    """
    if any(kwargs.get(name) is not None for name in CONTROL):
        raise CapabilityError(
            "raunet changes the sizes of features inside the network, to which a control network or an adapter for "
            "pictures adds its own; use a pipeline without it, or leave raunet out"
        )


def _layer(name: str, block: Any, number: int) -> tuple[str, Any]:
    """Return name and module of a residual block, or of the attention that follows it and gives the output."""
    part = "attentions" if getattr(block, "attentions", None) else "resnets"
    return f"{name}.{part}.{number}", getattr(block, part)[number]


def _remember(size: list[int]) -> Any:
    def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]) -> None:
        size[:] = output[1][-2].shape[-2:]  # size of the last skip before the downsampler's

    return remember


def _enlarge_to(size: list[int]) -> Any:
    def enlarge(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (args[0], tuple(size)), {}

    return enlarge


def _features(output: Any) -> Tensor:
    """Return the features in a layer's output, Float[Tensor, "batch channels h w"]; transformers return a tuple."""
    features: Tensor = output[0] if isinstance(output, tuple) else output
    return features


def _with(output: Any, features: Tensor) -> Any:
    return (features, *output[1:]) if isinstance(output, tuple) else features
