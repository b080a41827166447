"""Validation of LPIPS (VGG16) weights by the header of their file, without torch."""

from __future__ import annotations

from vitrail.core.config.paths import expanded
from vitrail.core.config.safetensors_header import read_header
from vitrail.errors import ModelError

CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # numbers of the convolutions in torchvision's VGG16
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # convolutions between two poolings


def check_weights(weights: str) -> dict[str, str]:
    """Refuse a file that does not hold LPIPS weights, by its header alone; further tensors are allowed.

    Returns:
        The file's name of every tensor in ``names``, by that name: the published ones, or those of the module LPIPS of
        the package ``lpips`` (0.1.4), which has its heads under two.

    Raises:
        ModelError: If the file is missing, broken, or lacks a tensor or has one of another shape.
    """
    there = read_header(expanded(weights)).shapes
    found = {name: next((own for own in (name, *others) if own in there), None) for name, others in _aliases().items()}
    missing = [name for name, own in found.items() if own is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise _refusal(weights, f"it has no {', '.join(missing[:3])}{more}")
    known = {name: own for name, own in found.items() if own is not None}
    shapes = {name: there[own] for name, own in known.items()}
    channels = 3
    for number, block in enumerate(BLOCKS):
        for conv in block:
            weight, bias = f"features.{conv}.weight", f"features.{conv}.bias"
            width = shapes[bias][0] if shapes[bias] else 0
            _fit(weights, weight, shapes[weight], (width, channels, 3, 3))
            _fit(weights, bias, shapes[bias], (width,))
            channels = width
        _fit(weights, head_name(number), shapes[head_name(number)], (1, channels, 1, 1))
    return known


def _aliases() -> dict[str, tuple[str, ...]]:
    """Return other names of every tensor in ``names``."""
    convs = {
        f"features.{conv}.{kind}": (f"net.slice{number + 1}.{conv}.{kind}",)
        for number, block in enumerate(BLOCKS)
        for conv in block
        for kind in ("weight", "bias")
    }
    heads = {head_name(number): (f"lins.{number}.model.1.weight",) for number in range(len(BLOCKS))}
    return {name: (convs | heads)[name] for name in names()}


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
