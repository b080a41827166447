"""Checks of weights after loading: whether the file had all of them, and their alignment in RAM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vitrail.errors import ModelError

if TYPE_CHECKING:
    from vitrail.backbones.loading.source import ModelSource

ALIGNMENT = 64  # bytes; the alignment of torch's own tensors


def check_filled(pipe: Any, source: ModelSource) -> None:
    """Refuse weights that a single file did not contain; diffusers would leave them randomly initialised.

    Raises:
        ModelError: With their number and the first.
    """
    import torch

    starts = _starts(source)
    cast = torch.tensor(starts, dtype=getattr(torch, source.options.dtype), device="cpu")
    known = {*starts, *cast.tolist()}  # some weights stay in float32
    lacking = [
        f"{part}.{name}"
        for part, network in _networks(pipe)
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and (tensor.is_meta or tensor.flatten()[0].item() not in known)
    ]
    if lacking:
        raise ModelError(
            f"model {source.name!r}: {source.location} has no values for {len(lacking)} weights that "
            f"{source.config} asks for, {lacking[0]} the first; it is another architecture, or not complete"
        )


def _starts(source: ModelSource) -> list[float]:
    """Return the first values that loaded weights can have, given that fused tensors are split in halves or thirds.

    1 is the first value of the projection of Stable Diffusion 3's first text encoder, an identity that files leave out.
    """
    from safetensors import safe_open

    starts = [1.0]
    with safe_open(source.location, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            values = file.get_tensor(name).flatten()
            count = len(values)
            starts += [float(values[cut]) for cut in {0, count // 3, count // 2, count * 2 // 3} if cut < count]
    return starts


def align(pipe: Any) -> None:
    """Copy weights at unaligned addresses of the mapped file, for which CPU kernels sum in another order.

    So a picture does not depend on how a model was split into files.
    """
    for _, network in _networks(pipe):
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()


def _networks(pipe: Any) -> Iterator[tuple[str, Any]]:
    import torch

    return ((name, part) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module))
