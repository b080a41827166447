"""``attentive``: latents move towards parameter-free self-attention of themselves.

AP-LDM (Cao et al., 2024, https://arxiv.org/abs/2410.06055), sec. 3.2. With the latents' cells as N tokens z_i of C
channels, after the scheduler's step

    z <- z + gamma_k (PFSA(z) - z),    PFSA(z) = softmax(z z^T / sqrt(C)) z

which is self-attention without weights. It is not free of scale: the latents are taken in the variance-exploding form
``x0 + sigma noise``, whatever the scheduler's own. There cells flock together at high noise and are smoothed at low
noise; in another form they would be blurred throughout. Latents of noise alone (alpha = 0) have no such form and show
nothing that could resemble anything, so they stay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import later, share, share_below_one
from vitrail.core.method.protocols import Point

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.schedule.step import Step

Decay = Literal["above-zero", "to-zero"]
ALIGNED = 8  # fused attention wants tokens of a multiple of so many channels


@frozen(kw_only=True)
class Attentive:
    """Move the latents towards parameter-free self-attention of themselves (AP-LDM)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "after"
    scale: float = field(default=0.004, validator=v.ge(0))  # gamma, at the first guided step; 0 is off
    delay: float = field(default=0.06, validator=share_below_one)  # eta_1, share of the stage's steps before it
    power: float = field(default=3.0, validator=v.ge(0))  # beta, of the cosine by which it falls to 0; 0: it does not
    until: float = later(default=1.0, validator=share)  # share of the stage's steps after which it is inactive
    decay: Decay = later(default="above-zero", validator=v.in_(("above-zero", "to-zero")))  # whether the cosine is 0
    # after the last guided step (the paper's) or at it (that of the authors' code)

    def __attrs_post_init__(self) -> None:
        if self.until <= self.delay:
            raise ValueError(
                f"'until' must be more than 'delay' ({self.delay:g}), got {self.until:g}; scale = 0 is off"
            )

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Tensor, scene: GuidanceContext, state: None) -> tuple[Tensor, None]:
        """The latents after the scheduler's step, Float32[Tensor, "batch channels height width"], moved by gamma.

        Unchanged where gamma is 0 or the next step's alpha is 0, that is where latents are noise alone.
        """
        gamma = gamma_at(self, step)
        if gamma == 0 or step.next_alpha == 0:
            return subject, None
        exploding = subject / step.next_alpha
        return subject + gamma * step.next_alpha * (attended(exploding) - exploding), None


def gamma_at(options: Attentive, step: Step) -> float:
    """gamma_k of sec. 3.2 at a step; 0 outside the shares ``delay`` to ``until`` of the stage's steps."""
    first, end = (math.floor(share * step.stage_num_steps + 0.5) for share in (options.delay, options.until))
    done, guided = step.stage_step - first, end - first
    if not 0 <= done < guided:
        return 0.0
    left = guided if options.decay == "above-zero" else max(1, guided - 1)
    return float(options.scale * (0.5 * (1 + math.cos(math.pi * done / left))) ** options.power)


def attended(latents: Tensor) -> Tensor:
    """PFSA of every picture, without the matrix of all pairs of cells.

    Args:
        latents: In the variance-exploding form, Float32[Tensor, "batch channels height width"].
    """
    import torch.nn.functional as F

    channels = latents.shape[1]
    tokens = F.pad(latents.flatten(2).transpose(1, 2), (0, -channels % ALIGNED))[:, None]
    mixed = F.scaled_dot_product_attention(tokens, tokens, tokens, scale=channels**-0.5)[:, 0, :, :channels]
    return mixed.transpose(1, 2).reshape(latents.shape)
