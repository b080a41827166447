"""Validation of LPIPS (VGG16) weights by the header of their file, without torch."""

from __future__ import annotations

from vitrail.core.config.paths import expanded
from vitrail.core.config.safetensors_header import read_header
from vitrail.errors import ModelError

CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # numbers of the convolutions in torchvision's VGG16
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # convolutions between two poolings


def check_weights(weights: str) -> None:
    """Refuse a file that does not hold LPIPS weights, by its header alone; further tensors are allowed.

    Raises:
        ModelError: If the file is missing, broken, or lacks a tensor or has one of another shape.
    """
    shapes = read_header(expanded(weights)).shapes
    missing = [name for name in names() if name not in shapes]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise _refusal(weights, f"it has no {', '.join(missing[:3])}{more}")
    channels = 3
    for number, block in enumerate(BLOCKS):
        for conv in block:
            weight, bias = f"features.{conv}.weight", f"features.{conv}.bias"
            width = shapes[bias][0] if shapes[bias] else 0
            _fit(weights, weight, shapes[weight], (width, channels, 3, 3))
            _fit(weights, bias, shapes[bias], (width,))
            channels = width
        _fit(weights, head_name(number), shapes[head_name(number)], (1, channels, 1, 1))


def _fit(weights: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise _refusal(weights, f"{name} is {shape} and should be {wanted}")


def _refusal(weights: str, what: str) -> ModelError:
    return ModelError(
        f"{weights} has not the weights of LPIPS in its VGG16 form: {what}; wanted are features.N.weight and .bias "
        f"for N in {', '.join(map(str, CONVS))} and linL.model.1.weight for L in 0 to {len(BLOCKS) - 1}, "
        "or leave `weights` out for the distance that ships inside"
    )


def head_name(number: int) -> str:
    """Return the name of the tensor that weights the channels of a layer."""
    return f"lin{number}.model.1.weight"


def names() -> list[str]:
    """Return the names of all tensors that the distance needs."""
    convs = [f"features.{conv}.{kind}" for conv in CONVS for kind in ("weight", "bias")]
    return convs + [head_name(number) for number in range(len(BLOCKS))]
