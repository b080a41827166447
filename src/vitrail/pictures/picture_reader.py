"""Reader of caller-supplied pictures: Pillow images of every mode, numpy arrays and torch tensors.

Data of at most eight bits becomes an upright RGB picture; deeper integers are rounded to eight bits by the range of
their mode. Floats in [0, 1] stay floats. Transparent pictures are composited over ``GROUND``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve

from vitrail.core.config.log import logger
from vitrail.errors import ConfigError, Problems

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.method.inputs import Extras

GROUND = "white"  # background of transparent pictures
CHANNELS = (1, 3, 4)  # grey, colours, colours and alpha
EIGHT, SIXTEEN = 255, 65535
ROUNDING = 1e-3  # tolerance of floats outside [0, 1]
MARK = -1.0  # value of a hint that means "draw here", as in inpainting control networks


def read(
    picture: object, name: str, *, marks: bool = False, alternative: str = "", quiet: bool = False
) -> Image | Tensor:
    """Read one caller-supplied picture.

    Args:
        picture: A Pillow image of any mode, or numbers: uint8 in [0, 255], uint16 in [0, 65535], bool, or floats in [0,
            1]; (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, also as
            the only one in a batch or a list. Where both ends could be channels, numpy's are last and torch's first.
        name: Name of the input, for messages.
        marks: Whether floats may also be -1, which marks what a control network should draw.
        alternative: What else the input may be, for messages.
        quiet: Do not warn about transparency.

    Returns:
        A Pillow image in RGB, upright; or, of floats, a tensor of their dtype in [0, 1], Float[Tensor, "1 3 Height
        Width"].

    Raises:
        ConfigError: Naming the input, and what is wrong with its class, shape, dtype or values.
    """
    from PIL import Image

    if isinstance(picture, (list, tuple)):
        if len(picture) != 1:
            raise ConfigError(f"{name}: one picture is wanted, got a list of {len(picture)}; make a call for each")
        return read(picture[0], name, marks=marks, alternative=alternative, quiet=quiet)
    if isinstance(picture, Image.Image):
        return _of_pillow(picture, name, quiet)
    return _of_numbers(picture, name, marks, alternative)


def _of_pillow(picture: Image, name: str, quiet: bool) -> Image:
    """Convert an image to upright RGB, by the range of its mode."""
    from PIL import ImageOps

    if not picture.width or not picture.height:
        raise ConfigError(f"{name}: the picture has no pixels, its size is {picture.width}x{picture.height}")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return _of_deep(upright, name, quiet)
    if upright.mode == "LAB":
        return _of_lab(upright)
    if upright.mode == "La":  # Pillow converts it to LA alone
        upright = upright.convert("LA")
    if upright.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in upright.info:
        return _composited(upright.convert("RGBA"), name, quiet)
    try:
        return upright.convert("RGB")
    except ValueError as error:
        raise ConfigError(f"{name}: mode {upright.mode!r} cannot be read: {error}; convert it to RGB") from error


def _composited(picture: Image, name: str, quiet: bool = False) -> Image:
    """Composite a picture over the background; warn if that shows."""
    from PIL import Image

    if picture.getchannel("A").getextrema()[0] == EIGHT:  # fully opaque
        return picture.convert("RGB")
    if not quiet:
        _say_ground(name)
    return Image.alpha_composite(Image.new("RGBA", picture.size, GROUND), picture).convert("RGB")


def _say_ground(name: str) -> None:
    logger().warning("picture.composited", input=name, ground=GROUND)


def _of_lab(picture: Image) -> Image:
    """Convert by colour management, since Pillow's own conversions do not cover LAB."""
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
    assert converted is not None
    return converted


def _of_deep(picture: Image, name: str, quiet: bool) -> Image:
    """Convert modes of more than eight bits: grey in [0, 65535], or floats in [0, 1]."""
    import numpy as np

    values = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        _refuse_outside(float(values.min()), float(values.max()), f"{name}: mode 'F'", marks=False)
        return _grey(values.clip(0, 1))
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= SIXTEEN:
        raise ConfigError(
            f"{name}: mode {picture.mode!r} is read as 16 bits, from 0 to {SIXTEEN}, and has values from {low:g} to "
            f"{high:g}; scale them to 16 bits, or give floats in [0, 1]"
        )
    if picture.mode == "I" and 0 < high <= EIGHT:
        raise ConfigError(
            f"{name}: mode 'I' is read as 16 bits, from 0 to {SIXTEEN}, and its values end at {high:g}, which is "
            "nearly black; convert a picture of 8 bits to mode 'L'"
        )
    hidden = picture.info.get("transparency")
    grey = _grey(values / SIXTEEN)
    if not isinstance(hidden, int) or not (values == hidden).any():
        return grey
    return _composited(_with_alpha(grey, values != hidden), name, quiet)


def _with_alpha(picture: Image, shown: Any) -> Image:
    from PIL import Image

    whole = picture.copy()
    whole.putalpha(Image.fromarray((shown * EIGHT).astype("uint8")))
    return whole


def _grey(shares: Any) -> Image:
    """Convert floats in [0, 1] to an eight-bit picture."""
    from PIL import Image

    return Image.fromarray((shares * EIGHT).round().astype("uint8")).convert("RGB")


def _of_numbers(values: Any, name: str, marks: bool, alternative: str) -> Image | Tensor:
    """Convert a numpy array or a tensor."""
    import numpy as np
    import torch

    is_tensor = isinstance(values, torch.Tensor)
    if not is_tensor and not isinstance(values, np.ndarray):
        raise ConfigError(f"{name}: a Pillow image, a numpy array or a tensor is wanted, got {type(values).__name__}")
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise ConfigError(
            f"{name}: the array masks values, which a picture cannot; fill them, as with values.filled(0)"
        )
    if not is_tensor:
        values = _native(values, name)
    elif values.is_meta or values.layout != torch.strided:
        raise ConfigError(f"{name}: a dense tensor with values is wanted, got a {values.layout} on {values.device}")
    layered = _channels_first(values.detach() if is_tensor else values, name, is_tensor, alternative)
    kind = str(values.dtype).removeprefix("torch.")
    if kind in ("bool", "uint8", "uint16"):
        most = {"bool": 1, "uint8": EIGHT, "uint16": SIXTEEN}[kind]
        plain = layered.cpu().numpy() if is_tensor else layered
        levels = plain if kind == "uint8" else (plain.astype(np.float64) * EIGHT / most).round().astype(np.uint8)
        return _of_levels(levels, name)
    tensor = layered if is_tensor else torch.from_numpy(np.ascontiguousarray(layered))
    if not tensor.is_floating_point() or tensor.element_size() < 2:  # torch computes with no floats of one byte
        _refuse_type(values, name)
    return _of_shares(tensor, name, marks, alternative)


def _native(values: Any, name: str) -> Any:
    """Return a numpy array in this machine's byte order, with floats of at most 64 bits, which torch takes."""
    import numpy as np

    if values.dtype.kind not in "bfu":
        _refuse_type(values, name)
    kind = np.float64 if values.dtype == np.longdouble else values.dtype.newbyteorder("=")
    return values.astype(kind, copy=False)


def _refuse_type(values: Any, name: str) -> None:
    raise ConfigError(
        f"{name}: numbers of type {str(values.dtype).removeprefix('torch.')} have no range of their own; give uint8 in "
        f"[0, {EIGHT}], uint16 in [0, {SIXTEEN}] or floats in [0, 1]"
    )


def _channels_first(values: Any, name: str, is_tensor: bool, alternative: str) -> Any:
    """Return one picture's numbers as (channels, height, width)."""
    shape = tuple(values.shape)
    if len(shape) == 4 and shape[0] > 1:
        raise ConfigError(f"{name}: one picture is wanted, got {shape[0]} in one array {shape}; make a call for each")
    single = values[0] if len(shape) == 4 and shape[0] == 1 else values
    if single.ndim == 2:
        single = single[None]
    ends = (0, -1) if is_tensor else (-1, 0)
    fitting = [end for end in ends if single.ndim == 3 and single.shape[end] in CHANNELS]
    if 0 in shape or not fitting:
        raise ConfigError(
            f"{name}: a picture is (height, width), (height, width, channels) or (channels, height, width) with 1, 3 "
            f"or 4 channels{alternative}; got {shape}"
        )
    if fitting[0] == 0:
        return single
    return single.permute(2, 0, 1) if is_tensor else single.transpose(2, 0, 1)


def _of_levels(levels: Any, name: str) -> Image:
    """Convert uint8 values, (channels, height, width)."""
    import numpy as np
    from PIL import Image

    if len(levels) == 1:
        return Image.fromarray(np.ascontiguousarray(levels[0])).convert("RGB")
    picture = Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))
    return _composited(picture, name) if len(levels) == 4 else picture


def _of_shares(values: Tensor, name: str, marks: bool, alternative: str) -> Tensor:
    """Convert floats, (channels, height, width)."""
    import torch

    shown = values.clamp(0, 1) if not marks else torch.where(values == MARK, values, values.clamp(0, 1))
    outside = values.float()
    if marks:
        outside = torch.where(outside == MARK, torch.zeros_like(outside), outside)
    _refuse_outside(float(outside.min()), float(outside.max()), f"{name}: floats", marks, alternative)
    if len(shown) == 4:
        alpha = shown[3:]
        if float(alpha.min()) < 1:
            _say_ground(name)
        shown = shown[:3] * alpha + (1 - alpha) if float(alpha.min()) < 1 else shown[:3]
    return shown.expand(3, -1, -1)[None]


def _refuse_outside(low: float, high: float, what: str, marks: bool, alternative: str = "") -> None:
    """Refuse values of another range, which would give a black or a white picture."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{what}: some values are not finite")
    if low < -ROUNDING or high > 1 + ROUNDING:
        hint = "map [-1, 1] to it by (x + 1) / 2" if low >= -1.01 and high <= 1.01 else "divide 8 bits by 255"
        also = ", or -1 where a control network should draw" if marks else ""
        raise ConfigError(f"{what} must be in [0, 1]{also}{alternative}, and go from {low:g} to {high:g}; {hint}")


def with_pictures(extras: Extras) -> Extras:
    """Return extras whose control images and IP-Adapter pictures are read, before anything is computed.

    A float tensor for an IP-Adapter is the output of its image encoder's processor, as in diffusers, and is kept.

    Raises:
        ConfigError: Naming every input that is not a picture.
    """
    problems, found = Problems(), dict[str, object]()
    for name, single in (("control_image", _hint), ("ip_adapter_image", _seen)):
        with problems.collect():
            found[name] = _each(getattr(extras, name), name, single)
    problems.tell()
    return evolve(extras, control_image=found["control_image"], ip_adapter_image=found["ip_adapter_image"])


def _each(pictures: object, name: str, single: Callable[[object, str], Image | Tensor]) -> object:
    """Read pictures, alone or in nested lists; None stays None."""
    if isinstance(pictures, (list, tuple)):
        return [_each(each, f"{name}[{number}]", single) for number, each in enumerate(pictures)]
    return None if pictures is None else single(pictures, name)


def _hint(picture: object, name: str) -> Image | Tensor:
    return read(picture, name, marks=True)


def _seen(picture: object, name: str) -> Image | Tensor:
    """Read a picture for an image encoder's processor; keep float tensors, which are its output."""
    import torch

    if isinstance(picture, torch.Tensor) and picture.is_floating_point():
        return picture
    found = read(picture, name)
    return _of_levels((found[0] * EIGHT).round().byte().numpy(), name) if isinstance(found, torch.Tensor) else found


__all__: Sequence[str] = ["GROUND", "read", "with_pictures"]
