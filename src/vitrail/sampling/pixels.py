"""Encoding and decoding on a padded canvas during a run, with equal results on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from vitrail.pictures.picture_files import pad_picture

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.run_config import Wrap
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.schedule.streams import Streams


MARGIN = 16  # latent cells; about the receptive field of an encoder


@frozen(eq=False)
class Pixels:
    """A backbone's VAE on canvases with padding; a ``Vae`` of guidance.

    Attributes:
        backbone: The model.
        exchange: Ranks that share decoding.
        wrap: Axes on which the picture's edges meet.
        backs_off: Whether decoding may be split when memory runs out.
        streams: Random streams of the picture.
    """

    backbone: Backbone
    exchange: Exchange
    wrap: Wrap
    backs_off: bool
    streams: Streams

    def decode(self, latents: Tensor, canvas: Canvas, clip: bool = True) -> Tensor:
        """Return a picture without padding, Float32[Tensor, "batch 3 Height Width"]; see ``Vae.decode``."""
        import torch

        decode, given = self.backbone.decode, (self.exchange, self.wrap, self.backs_off, self.streams)
        decoded = [decode(one[None], *given) if clip else decode(one[None], *given, clip=False) for one in latents]
        height, width = canvas.picture
        return torch.cat(decoded)[..., :height, :width]

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """Return mean latents of a picture in [-1, 1], padded, Float32[Tensor, "batch channels height width"].

        Where edges meet, the picture is extended by what lies across them, since encoders do not know about wrapping.
        """
        import torch
        import torch.nn.functional as F

        padded = pad_picture(picture, canvas.cell * canvas.height, canvas.cell * canvas.width)
        top = min(MARGIN, canvas.height) if canvas.wraps("y") else 0
        left = min(MARGIN, canvas.width) if canvas.wraps("x") else 0
        if top or left:
            down, right = canvas.cell * top, canvas.cell * left
            padded = F.pad(padded, (right, right, down, down), mode="circular")
        encoded = torch.cat([self.backbone.encode(one[None], None) for one in padded])
        return encoded[..., top : top + canvas.height, left : left + canvas.width]
