"""Rectification ``freeu``: amplified backbone features and damped skips in the decoder of a U-Net."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.backbones.rectification.module_hooks import Hook, attached, refuse_compiled
from vitrail.backbones.rectification.scope import after_start, choose, each_once, sites_in, within
from vitrail.core.config.fields import as_tuple, share_below_one

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrail.core.method.protocols import Forward

NAME = "freeu"
Version = Literal["v1", "v2"]
VERSIONS = ("v1", "v2")
factors = v.deep_iterable(v.ge(0))


@frozen(kw_only=True)
class FreeU:
    """Amplify the decoder's own features and damp the lowest frequencies of its skips.

    FreeU (Si et al., 2023, https://arxiv.org/abs/2309.11497), sec. 3.2. At the entry of each residual block of a site,
    half of the channels of the features h are multiplied, by ``b`` (``v1``) or by (b - 1) m + 1 with the channel mean
    m of h stretched to [0, 1] in each picture (``v2``, the authors' later form), and the two lowest frequencies of each
    axis of the skip are multiplied by ``s``. Published b and s: SDXL [1.3, 1.4] and [0.9, 0.2], for large pictures the
    defaults; SD 1.5 [1.5, 1.6] and [0.9, 0.2]; SD 2.1 [1.4, 1.6] and [0.9, 0.2]. 1 is off.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"unet-skips"})
    sites: tuple[str, ...] = field(
        default=("up_blocks.0", "up_blocks.1"), converter=as_tuple, validator=(v.min_len(1), sites_in("up_blocks"))
    )  # blocks or residual blocks of the decoder
    b: tuple[float, ...] = field(default=(1.1, 1.2), converter=as_tuple, validator=factors)  # of features, one per site
    s: tuple[float, ...] = field(default=(0.6, 0.4), converter=as_tuple, validator=factors)  # of skips, one per site
    version: Version = field(default="v1", validator=v.in_(VERSIONS))  # how features are multiplied
    start: float = field(default=0.0, validator=share_below_one)  # share of the schedule's steps before it acts
    until: float = field(default=1.0, validator=after_start)  # share of the schedule's steps after which it is inactive

    def __attrs_post_init__(self) -> None:
        if not len(self.sites) == len(self.b) == len(self.s):
            raise ValueError(
                f"'b' and 's' need a value for each of the {len(self.sites)} sites, got {len(self.b)} and {len(self.s)}"
            )

    def check(self, network: nn.Module | None) -> None:
        """Refuse sites without a residual block of the decoder, or that share one."""
        refuse_compiled(network, (entry.name for entry, _, _ in self._entries(network)), NAME)

    def apply(self, forward: Forward) -> AbstractContextManager[None]:
        """Change the inputs of the sites' residual blocks, in the steps of the range."""
        if not within(forward.step, self.start, self.until):
            return nullcontext()
        entries = [each for each in self._entries(forward.network) if each[1:] != (1.0, 1.0)]
        hooks = [Hook(entry.name, entry.resnet, before=self._change(entry, b, s)) for entry, b, s in entries]
        return attached(forward.network, hooks, NAME)

    def _entries(self, network: Any) -> list[tuple[SkipInput, float, float]]:
        """Return the residual blocks with their b and s."""
        entries = decoder_entries(network)
        groups = choose(entries, self.sites, "residual block with a skip")
        each_once([name for site in self.sites for name in groups[site]], NAME)
        return [
            (entries[name], b, s)
            for site, b, s in zip(self.sites, self.b, self.s, strict=True)
            for name in groups[site]
        ]

    def _change(self, entry: SkipInput, b: float, s: float) -> Any:
        def change(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            import torch

            hidden, skip = args[0][:, : entry.channels], args[0][:, entry.channels :]
            joined = torch.cat([amplified(hidden, b, self.version), damped(skip, s)], dim=1)
            return (joined, *args[1:]), kwargs

        return change


@frozen(eq=False)
class SkipInput:
    """A residual block whose input joins features and a skip.

    Attributes:
        name: Dotted name in the network.
        resnet: The module; its first argument is both, concatenated along the channels.
        channels: Number of channels that are features.
    """

    name: str
    resnet: Any
    channels: int


def decoder_entries(network: Any) -> dict[str, SkipInput]:
    """Return every residual block of a U-Net's decoder that takes a skip, by name, in the order of the forward."""
    found = {}
    deepest = network.down_blocks[-1] if network.mid_block is None else network.mid_block
    channels = deepest.resnets[-1].out_channels
    for i, block in enumerate(network.up_blocks):
        for j, resnet in enumerate(block.resnets):
            if resnet.in_channels > channels:
                name = f"up_blocks.{i}.resnets.{j}"
                found[name] = SkipInput(name, resnet, channels)
            channels = resnet.out_channels
    return found


def amplified(hidden: Tensor, b: float, version: Version) -> Tensor:
    """Multiply the first half of the channels.

    Args:
        hidden: Float[Tensor, "batch channels h w"].
        b: Factor; 1 is bit-identical.
        version: ``v1``: b everywhere; ``v2``: b where the channel mean is highest, 1 where it is lowest.
    """
    import torch

    if b == 1.0:
        return hidden
    gain: Any = b
    if version == "v2":
        mean = hidden.float().mean(1, keepdim=True)
        low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
        gain = ((b - 1) * (mean - low) / (high - low).clamp_min(torch.finfo(mean.dtype).tiny) + 1).to(hidden.dtype)
    half = hidden.shape[1] // 2
    return torch.cat([hidden[:, :half] * gain, hidden[:, half:]], dim=1)


def damped(skip: Tensor, s: float) -> Tensor:
    """Multiply frequencies 0 and -1 of both axes, in float32.

    Args:
        skip: Float[Tensor, "batch channels h w"].
        s: Factor; 1 is bit-identical.
    """
    import torch

    if s == 1.0:
        return skip
    spectrum = torch.fft.fft2(skip.float())
    low = spectrum.real.new_ones(spectrum.shape[-2:])
    low[[0, 0, -1, -1], [0, -1, 0, -1]] = s
    filtered: Tensor = torch.fft.ifft2(spectrum * low).real.to(skip.dtype)
    return filtered
