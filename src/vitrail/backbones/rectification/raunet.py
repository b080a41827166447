"""Rectification ``raunet``: a U-Net whose deep features stay as small as in training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.backbones.rectification.halving import (
    Level,
    encoder_levels,
    matched_sizes,
    pooled,
    refuse_control,
    strided,
)
from vitrail.backbones.rectification.module_hooks import Hook, attached, refuse_compiled
from vitrail.backbones.rectification.scope import after_start, choose, is_larger, known_branches, sites_in, within
from vitrail.core.config.fields import as_tuple, later, share_below_one
from vitrail.core.method.micro_batch import Branch

if TYPE_CHECKING:
    from torch import nn

    from vitrail.core.method.protocols import Forward

NAME = "raunet"
Form = Literal["stride", "pool"]
Parts = Literal["rounded", "dropped"]
FORMS = ("stride", "pool")


@frozen(kw_only=True)
class RAUNet:
    """Halve the features once more in the encoder, and enlarge them again in the decoder.

    HiDiffusion's Resolution-Aware U-Net (Zhang et al., 2023, https://arxiv.org/abs/2311.17528), sec. 4. ``stride``:
    the downsampler of a level has a stride of 4 and taps 2 cells apart, and the matching upsampler enlarges by 4.
    ``pool``: the features of a level, and with them its skips, are averaged over 2x2 cells after its first layer, and
    resized bicubically before the layer that joins the last skip of full size. Views with no more cells than a
    training picture are not changed; use it with larger views (``whole``).

    Published sites and shares of the steps: SDXL, both forms at ``down_blocks.1``, below 4096 pixels ``stride`` until
    0.16 and ``pool`` from there until 0.4, at 4096 until 0.3 and until 0.7; SD 1.5 and 2.1, below 2048 pixels
    ``stride`` at ``down_blocks.0`` until 0.4, at 2048 that until 0.7 and ``pool`` at ``down_blocks.1`` until 0.3.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"convolutions", "unet-skips"})
    form: Form = field(default="stride", validator=v.in_(FORMS))  # stride: downsample by
    # 4 instead of 2; pool: average features over 2x2 cells
    sites: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=sites_in("down_blocks")
    )  # levels of the encoder; () for the first with attention, or with form pool for the second
    start: float = field(default=0.0, validator=share_below_one)  # share of the schedule's steps before it acts
    until: float = field(default=1.0, validator=after_start)  # share of the schedule's steps after which it is inactive
    branches: tuple[Branch, ...] = field(
        default=(), converter=as_tuple, validator=known_branches
    )  # CFG branches that it acts on; () for all
    parts: Parts = later(default="rounded", validator=v.in_(("rounded", "dropped")))  # of a step at the ends of the
    # range: rounded half up, or dropped as in the authors' code

    def check(self, network: nn.Module | None) -> None:
        """Refuse levels that cannot be halved, and upsamplers that cannot resize to a given size."""
        refuse_compiled(network, (), NAME)
        refuse_compiled(network, (hook.name for hook in self._hooks(network)), NAME)

    def apply(self, forward: Forward) -> AbstractContextManager[None]:
        """Halve features at the sites, in the steps of the range."""
        if not (within(forward.step, self.start, self.until, truncated=self.parts == "dropped") and is_larger(forward)):
            return nullcontext()
        return attached(forward.network, self._hooks(forward.network), NAME)

    def _hooks(self, network: Any) -> list[Hook]:
        levels = encoder_levels(network)
        fit = {name: level for name, level in levels.items() if self.form == "pool" or level.back is not None}
        sites = self.sites or self._usual(fit)
        groups = choose(fit, sites, "level with a downsampler" if self.form == "stride" else "level")
        chosen = dict.fromkeys(name for names in groups.values() for name in names)
        hooks = [Hook("", network, before=refuse_control), *matched_sizes(levels.values())]
        for name in chosen:
            hooks += [strided(fit[name])] if self.form == "stride" else pooled(fit[name])
        return hooks

    def _usual(self, fit: dict[str, Level]) -> list[str]:
        """Return the default level."""
        names = list(fit)
        if self.form == "pool":
            return names[1:2] or names
        return [name for name in names if hasattr(fit[name].down, "attentions")][:1] or names[-1:]
