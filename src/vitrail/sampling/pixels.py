"""The way between latents and pictures while a run is in work, the same on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from vitrail.sampling.start_picture import pad_picture

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.run_config import Wrap
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.schedule.streams import Streams


MARGIN = 16  # latent cells, about as far as an encoder's convolutions see


@frozen(eq=False)
class Pixels:
    """A backbone's VAE on canvases with padding.

    Attributes:
        backbone: The model.
        exchange: Ranks that share decoding.
        wrap: Axes on which the picture's edges meet.
        backs_off: Whether decoding may be cut when memory runs out.
        streams: Of the picture.
    """

    backbone: Backbone
    exchange: Exchange
    wrap: Wrap
    backs_off: bool
    streams: Streams

    def decode(self, latents: Tensor, canvas: Canvas) -> Tensor:
        """A picture in [0, 1] without padding, Float32[Tensor, "batch 3 Height Width"]."""
        import torch

        decode, given = self.backbone.decode, (self.exchange, self.wrap, self.backs_off, self.streams)
        decoded = [decode(one[None], *given) for one in latents]
        height, width = canvas.picture
        return torch.cat(decoded)[..., :height, :width]

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """Mean latents of a picture in [-1, 1] on the padded canvas, Float32[Tensor, "batch channels height width"].

        An encoder knows nothing of edges that meet, so it is shown what lies on the other side of them.
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
