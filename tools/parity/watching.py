"""What the network and the decoder of a pipeline are asked, on either side alike."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

ADDED = {"text_embeds": "pooled text", "time_ids": "sizes and crop"}  # of XL


@frozen(eq=False)
class Row:
    """One row of a forward.

    Attributes:
        parts: What the network is given, by name: ``latents`` (scaled for the network), ``text`` and so on.
    """

    parts: dict[str, Tensor]


@frozen(eq=False)
class Moment:
    """All rows that the network is asked at one timestep.

    Attributes:
        timestep: The timestep.
        rows: The rows, in order.
    """

    timestep: float
    rows: list[Row] = field(factory=list)


@frozen(eq=False)
class Seen:
    """What was seen of a run.

    Attributes:
        moments: What the network was asked, step by step; a new step is one with another timestep.
        decoded: Latents that the decoder was given, with the scale that they have in the run.
    """

    moments: list[Moment] = field(factory=list)
    decoded: list[Tensor] = field(factory=list)

    @contextmanager
    def of(self, network: nn.Module, vae: nn.Module) -> Iterator[None]:
        """Look on during a block.

        Args:
            network: The denoising network.
            vae: The autoencoder; its ``decode`` is replaced meanwhile.
        """
        signature, plain = inspect.signature(network.forward), vae.decode
        scale = vae.config.scaling_factor

        def asked(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._add(signature.bind(*args, **kwargs).arguments)

        def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.decoded.append(_kept(z) * scale)
            return plain(z, *args, **kwargs)

        hook = network.register_forward_pre_hook(asked, with_kwargs=True)
        vae.decode = decode
        try:
            yield
        finally:
            hook.remove()
            del vae.decode

    def _add(self, given: dict[str, Any]) -> None:
        timestep = float(torch.as_tensor(given["timestep"]).flatten()[0])
        if not self.moments or self.moments[-1].timestep != timestep:
            self.moments.append(Moment(timestep))
        parts = {"latents": given["sample"], "text": given.get("encoder_hidden_states")}
        added = given.get("added_cond_kwargs") or {}
        parts |= {told: added[name] for name, told in ADDED.items() if name in added}
        kept = {name: _kept(value) for name, value in parts.items() if value is not None}
        rows = [Row({name: value[i] for name, value in kept.items()}) for i in range(len(given["sample"]))]
        self.moments[-1].rows.extend(rows)


def _kept(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)
