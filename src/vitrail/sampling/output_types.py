"""The pictures of a call in the form that was asked for; diffusers' four."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from vitrail.core.method.backbone import Backbone

    Images: TypeAlias = Any  # list[Image], np.ndarray or Tensor, by the output type

OutputType = Literal["pil", "np", "pt", "latent"]


def check_output_type(output_type: object) -> None:
    """Refuse another output type.

    Raises:
        ConfigError: Naming those that there are.
    """
    names = get_args(OutputType)
    if output_type not in names:
        raise ConfigError(f"output_type must be {', '.join(names[:-1])} or {names[-1]}, got {output_type!r}")


def as_output(pictures: Sequence[Tensor], output_type: OutputType, backbone: Backbone) -> Images:
    """Return decoded pictures as a caller wants them.

    Args:
        pictures: Each Float32[Tensor, "1 3 Height Width"] in [0, 1].
        output_type: ``pil``, ``np`` or ``pt``.
        backbone: Converts to Pillow images.

    Returns:
        A list of Pillow images; Float32[np.ndarray, "images Height Width 3"]; or
        Float32[Tensor, "images 3 Height Width"] on the model's device.
    """
    import torch

    if output_type == "pil":
        return [backbone.to_pil(picture)[0] for picture in pictures]
    batch = torch.cat(list(pictures)) if len(pictures) > 1 else pictures[0]  # one large picture is not copied
    return batch if output_type == "pt" else batch.cpu().permute(0, 2, 3, 1).float().numpy()
