"""How the authors' draws become the numbers of a stream of Vitrail, where the two are not drawn alike.

A form takes a function that returns the next draw of a kind, the shape that the stream draws, and the latent cells of a
unit; it returns numbers from which Vitrail makes what the authors' code made of its draws.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .draws import Draw

Take = Callable[[str], Draw]
Shape = tuple[int, ...]


class UnfitDrawError(Exception):
    """A draw is not what the form makes something of."""


def same(take: Take, shape: Shape, cells: int) -> Tensor:
    """A standard normal draw of the same shape."""
    draw = take("normal")
    if draw.shape != shape:
        raise UnfitDrawError(f"the authors' code drew another shape, {draw}")
    return _numbers(draw)


def lattice(take: Take, shape: Shape, cells: int) -> Tensor:
    """The canvas of normal draws that are its strided views, row-major (CutDiffusion)."""
    first = take("normal")
    sizes = list(zip(shape[2:], first.shape[2:], strict=False))
    if len(first.shape) != 4 or first.shape[:2] != shape[:2] or any(whole % part for whole, part in sizes):
        raise UnfitDrawError(f"the authors' draw is no strided view of it, {first}")
    down, right = (whole // part for whole, part in sizes)
    canvas = torch.empty(shape, dtype=torch.float32, device="cpu")
    for number in range(down * right):
        draw = first if number == 0 else take("normal")
        if draw.shape != first.shape:
            raise UnfitDrawError(f"the authors' draws are views of several shapes, {first} and {draw}")
        y, x = divmod(number, right)
        canvas[..., y::down, x::right] = _numbers(draw)
    return canvas


def shifts(take: Take, shape: Shape, cells: int) -> Tensor:
    """Uniform numbers for the jitter of windows, from integers that were drawn window by window, first to the right.

    The windows of DemoFusion: one on a border moves outwards, and along an axis with one window nothing is drawn.
    """
    _, rows, cols = shape
    made = torch.zeros(shape, dtype=torch.float32, device="cpu")
    for y in range(rows):
        for x in range(cols):
            for axis, place, count in ((1, x, cols), (0, y, rows)):
                if count > 1:
                    made[axis, y, x] = _share(take("integers"), place, count, cells)
    return made


def _share(draw: Draw, place: int, count: int, cells: int) -> float:
    """Return the uniform number that moves a window as an integer that was drawn; see ``Windows``."""
    if draw.bounds is None or draw.shape != ():
        raise UnfitDrawError(f"a window's shift is one integer between two bounds, not {draw}")
    low, high = (cells * bound for bound in draw.bounds)
    value = cells * int(_numbers(draw))
    wanted = {0: low <= 0 == high, count - 1: low == 0 <= high}.get(place, low == -high)
    if not wanted:
        raise UnfitDrawError(f"window {place} of {count} along an axis does not move like that: {draw}")
    moved = -value if place == 0 else value - low
    return (moved + 0.5) / (high - low + 1)


def permutations(take: Take, shape: Shape, cells: int) -> Tensor:
    """Uniform numbers that sort to permutations of the views, drawn one by one for each channel and cell."""
    views, _, *inner = shape
    drawn = [take("permutation") for _ in range(math.prod(inner))]
    odd = [draw for draw in drawn if draw.shape != (views,)]
    if odd:
        raise UnfitDrawError(f"the permutations are of {views} views, not {odd[0]}")
    orders = torch.stack([_numbers(draw) for draw in drawn]).view(*inner, views).movedim(-1, 0)[:, None]
    return (orders.argsort(dim=0) + 0.5) / views


def quarters(take: Take, shape: Shape, cells: int) -> Tensor:
    """One of four, by the quarter in which one uniform number lies (HiDiffusion)."""
    draw = take("uniform")
    if math.prod(draw.shape) != 1 or shape != ():
        raise UnfitDrawError(f"a shift is one uniform number, not {draw}")
    share = float(_numbers(draw))
    return torch.tensor(max(0, math.ceil(4 * share) - 1), dtype=torch.int64, device="cpu")


def _numbers(draw: Draw) -> Tensor:
    assert draw.value is not None, draw  # only kinds that are numbers are taken
    return draw.value


FORMS: dict[str, Callable[[Take, Shape, int], Tensor]] = {
    form.__name__: form for form in (same, lattice, shifts, permutations, quarters)
}
