"""From latents to the picture of the wanted size: decoding, and the enlarging of a picture that was sampled smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail.core.engine.upscaling import upscaled
from vitrail.core.method.calls import StrategyCall
from vitrail.core.schedule.streams import Streams
from vitrail.sampling.discovery import registered_name

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.run_config import RunConfig
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.cascade import Finish


def sampled_size(finish: Finish | None, config: RunConfig, backbone: Backbone) -> tuple[int, int]:
    """Return the height and width, in pixels, of the picture that is decoded.

    Args:
        finish: Of the method; None if it samples the wanted size.
        config: Gives the wanted size.
        backbone: Gives the training size.
    """
    if finish is None:
        return config.height, config.width
    unit = backbone.vae_scale_factor
    return finish.sampled(config.height, config.width, backbone.native_size * unit, unit, config.wrap)


def finished_picture(
    latents: Tensor, finish: Finish | None, config: RunConfig, backbone: Backbone, exchange: Exchange
) -> Tensor:
    """Decode the latents of one picture and bring it to the wanted size; collective.

    Args:
        latents: Float32[Tensor, "1 channels height width"] on the model's device.
        finish: Of the method, if it has one.
        config: The run, with the picture's own seed.
        backbone: The model.
        exchange: The ranks, which share the decoding.

    Returns:
        Float32[Tensor, "1 3 Height Width"] in [0, 1].
    """
    backs_off, (height, width) = config.memory == "auto", sampled_size(finish, config, backbone)
    with exchange.communicator.trace.span("compute", "decode"):
        decoded = backbone.decode(latents, exchange, config.wrap, backs_off, Streams(config.seed))
    picture, wanted = decoded[..., :height, :width], (config.height, config.width)
    if finish is None or tuple(picture.shape[-2:]) == wanted:
        return picture
    asked = StrategyCall("upscaler", finish.upscaler, named=registered_name)
    with exchange.communicator.trace.span("compute", "upscale"):
        return upscaled(asked, picture.float(), wanted, config.wrap, exchange)
