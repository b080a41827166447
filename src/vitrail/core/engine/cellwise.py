"""A canvas whose cells are at different steps: a scheduler's step done on some of its cells, the same bits as on all.

For schedulers that work cell by cell (``Stepper.works_by_cell``). A part of a step is the step of the whole canvas, of
which only the cells are kept that are ready for it; the others are done in a later part of the same step. So a step's
numbers are made by the same operations on tensors of the same shape, whatever the parts.

One canvas is enough: a cell is needed as it is before a step only until every view that reads it there is predicted,
and only then can it do the step. What the scheduler keeps of the canvas - earlier outputs, of a multistep scheduler -
goes with the cells; the rest of its state, such as the number of the step, is kept for each step that is not done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define, field, frozen

if TYPE_CHECKING:
    from torch import Generator, Size, Tensor

    from vitrail.core.geometry.views import View
    from vitrail.core.schedule.noise_schedule import Stepper

Path = tuple[str | int, ...]  # name of a scheduler's attribute, and places in lists


@frozen
class _Kept:
    """The place of a tensor of the canvas's shape in a scheduler's state."""

    path: Path


@define(eq=False)
class CellwiseCanvas:
    """Latents and scheduler of some steps; steps count from 0.

    Attributes:
        stepper: The scheduler.
        latents: Every cell after as many steps as ``done`` says, Float32[Tensor, "batch channels height width"].
        done: Number of steps that each cell has done, on the CPU, Int32[Tensor, "height width"].
    """

    stepper: Stepper
    latents: Tensor
    done: Tensor = field(init=False)
    _kept: dict[Path, Tensor] = field(init=False)
    _states: dict[int, dict[str, object]] = field(init=False)  # the rest of the scheduler's state, before each step
    _scaled: int = -1  # last step that latents were scaled for
    _loaded: int | None = None  # step whose state the scheduler has

    def __attrs_post_init__(self) -> None:
        import torch

        state, self._kept = taken_apart(self.stepper.state(), self.latents.shape)
        self._states = {0: state}
        self.done = torch.zeros(self.latents.shape[-2:], dtype=torch.int32, device="cpu")

    def ready(self, step: int, late: Sequence[View]) -> Tensor:
        """Return the cells that can do a step: they have done those before, and no view awaited writes to them.

        Args:
            step: The step.
            late: Views of the step whose predictions are not here.

        Returns:
            Bool[Tensor, "height width"], on the CPU.
        """
        import torch

        cells = self.done == step
        for view in late:
            view.write(cells, torch.zeros((), dtype=torch.bool, device="cpu").expand(view.shape))
        return cells

    def is_at(self, step: int, views: Sequence[View]) -> bool:
        """Whether all cells of some views have done the steps before one, so that the views can be read for it."""
        return all(bool((self.done[p.rows, p.cols] >= step).all()) for view in set(views) for p in view.pieces)

    def scale(self, step: int, index: int, views: Tensor) -> Tensor:
        """Scale latents of some cells that are at a step for the network.

        Args:
            step: The step.
            index: Its number in the scheduler's schedule.
            views: Float32[Tensor, "*lead h w"].
        """
        if self._loaded != step:
            self._load(step, self._kept)
        scaled = self.stepper.scale(views, index)
        self._states[step], _ = taken_apart(self.stepper.state(), self.latents.shape)
        self._scaled = max(self._scaled, step)
        return scaled

    def advance(self, step: int, index: int, output: Tensor, cells: Tensor, generator: Generator) -> Tensor:
        """Do a step on some cells.

        Args:
            step: The step.
            index: Its number in the scheduler's schedule.
            output: Network output of the canvas, valid in these cells, Float32[Tensor, "batch channels height width"].
            cells: As ``ready`` gives them, Bool[Tensor, "height width"].
            generator: Source of the step's noise, which is drawn for the whole canvas at each of its parts.

        Returns:
            The new latents of these cells, zero elsewhere, Float32[Tensor, "batch channels height width"].
        """
        import torch

        if self._scaled < step:  # every step has been scaled for, also where no view of it was read
            self.scale(step, index, self.latents[..., :1, :1])
        is_whole = bool(cells.all())
        own = self._kept if is_whole else {path: tensor.clone() for path, tensor in self._kept.items()}
        self._load(step, own)  # a scheduler may add to what it keeps in place
        new = self.stepper.step(output, index, self.latents, generator)
        state, kept = taken_apart(self.stepper.state(), self.latents.shape)
        self._states.setdefault(step + 1, state)  # that of an earlier part may have been scaled for
        self._loaded = None
        self.done[cells] = step + 1
        if is_whole:
            self.latents, self._kept, self._loaded = new, kept, step + 1
            made = new
        else:
            chosen = cells.to(self.latents.device)
            self.latents = torch.where(chosen, new, self.latents)
            before = self._kept
            merged = {p: torch.where(chosen, kept[p], before[p]) if p in before else kept[p] for p in kept}
            self._kept = before | merged
            made = torch.where(chosen, new, torch.zeros_like(new))
        if bool((self.done > step).all()):
            self._states = {number: each for number, each in self._states.items() if number > step}
        return made

    def _load(self, step: int, kept: Mapping[Path, Tensor]) -> None:
        self.stepper.replace({name: _put_together(value, kept) for name, value in self._states[step].items()})
        self._loaded = step


def taken_apart(state: Mapping[str, object], shape: Size) -> tuple[dict[str, object], dict[Path, Tensor]]:
    """Return a scheduler's state without the tensors of the canvas's shape, and these by their place."""
    kept: dict[Path, Tensor] = {}
    return {name: _without(value, (name,), shape, kept) for name, value in state.items()}, kept


def _without(value: object, path: Path, shape: Size, kept: dict[Path, Tensor]) -> object:
    import torch

    if isinstance(value, torch.Tensor) and value.shape == shape:
        kept[path] = value
        return _Kept(path)
    if isinstance(value, (list, tuple)):
        items = [_without(item, (*path, number), shape, kept) for number, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _put_together(value: object, kept: Mapping[Path, Tensor]) -> object:
    if isinstance(value, _Kept):
        return kept[value.path]
    if isinstance(value, (list, tuple)):
        items = [_put_together(item, kept) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
