"""Prediction of a forward's memory without computing it.

A copy of the network without weights runs on torch's ``meta`` device, where tensors have shapes but no storage, while
the bytes of live storages are counted. Attention counts its result only, as for kernels that never hold the matrix of
scores. Scratch memory inside kernels is not counted.
"""

from __future__ import annotations

import functools
import json
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitrail.errors import CapabilityError

UNET, SD3 = "UNet2DConditionModel", "SD3Transformer2DModel"
TEXT_TOKENS = 77  # of a CLIP encoder
JOINT_TOKENS = 77 + 256  # of the CLIP encoders and T5
_LOCK = threading.Lock()


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of storages that operations create, as long as they live.

    Attributes:
        now: Bytes that are live.
        peak: Maximum of ``now``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class _FusedAttention(TorchFunctionMode):
    """Replace attention by an empty result, on a device that has no fused kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def row_bytes(network: Any, shape: tuple[int, int], tokens: int | None = None) -> int:
    """Return the peak bytes of tensors per row of a forward, inputs included, weights excluded.

    Args:
        network: A diffusers U-Net or SD3 transformer; only its configuration is used.
        shape: Height and width of a view, latent cells.
        tokens: Number of text tokens; that of the family's encoders if None.

    Raises:
        CapabilityError: For another kind of network.
    """
    network = getattr(network, "_orig_mod", network)  # as torch.compile wraps it
    kind: Any = type(network)
    if kind.__name__ not in (UNET, SD3):
        raise CapabilityError(f"what a forward of {kind.__name__} needs is not known")
    config = json.dumps(dict(network.config), sort_keys=True)
    with _LOCK:  # ranks that are threads ask at the same time for the same result
        return _row_bytes(kind, config, shape, tokens, network.dtype)


@functools.lru_cache(maxsize=64)
def _row_bytes(kind: Any, config: str, shape: tuple[int, int], tokens: int | None, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        twin = kind.from_config(json.loads(config))
    torch.nn.Module.to(twin, dtype).eval()
    with torch.no_grad(), _FusedAttention(), LiveBytes() as live:
        twin(**_arguments(twin, shape, tokens, dtype), return_dict=False)
    return int(live.peak)


def _arguments(network: Any, shape: Sequence[int], tokens: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return a network's arguments for one row, without values."""
    empty = functools.partial(torch.empty, device="meta", dtype=dtype)
    config = network.config
    if type(network).__name__ == SD3:
        sides = [side + -side % config.patch_size for side in shape]
        return {
            "hidden_states": empty(1, config.in_channels, *sides),
            "timestep": empty(1),
            "encoder_hidden_states": empty(1, tokens or JOINT_TOKENS, config.joint_attention_dim),
            "pooled_projections": empty(1, config.pooled_projection_dim),
        }
    given: dict[str, Any] = {
        "sample": empty(1, config.in_channels, *shape),
        "timestep": empty(()),
        "encoder_hidden_states": empty(1, tokens or TEXT_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {"text_embeds": empty(1, width), "time_ids": empty(1, 6)}
    return given
