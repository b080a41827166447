"""Exchange of a dataflow's units: every rank posts all of them in one order, and waits for those alone that it needs.

The units of some steps, in the order of ``dataflow_order``, are messages of their owners to all ranks, in the
communicator's own ordering domain. A rank posts what it receives as far as its next unit, so the number of operations
that it has posted is its place in the order: the rank that is furthest behind is one that waits for no other.

A wait has the timeout of one message, counted from when the message could be sent: all that its owner must have and do
before has come. A stop is agreed upon in the same order. Before the units of each step stands a message of rank 0,
whether it wants to stop, and all ranks stop ``HEEDED`` steps later, before any of them has posted a unit of that step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from vitrail.comm.dataflow import AHEAD, Needs, StepUnit
from vitrail.errors import ProtocolError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Communicator, Work

HEEDED = AHEAD + 1  # steps between a wish to stop and the stop
VOTE = -1  # the unit that stands for rank 0's wish


def with_votes(order: Sequence[StepUnit]) -> tuple[StepUnit, ...]:
    """Return an order with rank 0's wish before the first unit of every step after which it can be heeded."""
    last, seen, found = max((unit.step for unit in order), default=-1), set[int](), list[StepUnit]()
    for unit in order:
        if unit.step not in seen and unit.step + HEEDED <= last:
            found.append(StepUnit(unit.step, VOTE, 0))
        seen.add(unit.step)
        found.append(unit)
    return tuple(found)


@define(eq=False)
class DataflowExchange:
    """One rank's part in the exchange; a single rank communicates nothing.

    Attributes:
        communicator: This rank's communicator.
        order: All units, from ``dataflow_order``; all ranks have the same.
        needs: Of every unit of every step, the units of the step before that it needs.
        like: Return an empty tensor like a unit's, on the communicator's device.
        wants_stop: Whether to stop; rank 0's counts.
    """

    communicator: Communicator
    order: tuple[StepUnit, ...]
    needs: Sequence[Needs]
    like: Callable[[StepUnit], Tensor]
    wants_stop: Callable[[], bool]
    num_steps: int = field(init=False)
    _owners: dict[tuple[int, int], int] = field(init=False)
    _place: dict[StepUnit, int] = field(init=False)
    _before: dict[StepUnit, StepUnit] = field(init=False, factory=dict)  # the unit before in its owner's own order
    _units: dict[int, list[StepUnit]] = field(init=False, factory=dict)  # by step, without votes
    _posted: int = 0  # place of the next unit to post
    _works: dict[StepUnit, tuple[Work | None, Tensor]] = field(init=False, factory=dict)  # posted, not yet dropped
    _computed: dict[StepUnit, Tensor] = field(init=False, factory=dict)  # this rank's, not yet posted
    _own: list[StepUnit] = field(init=False)  # this rank's, without votes
    _last_of: list[int] = field(init=False)  # place among them of the last one up to each step
    _sent: int = 0  # how many of them
    _votes: int = 0  # how many there are
    _heeded: int = 0  # votes that are known
    _dropped: int = 0  # first step that is not dropped

    def __attrs_post_init__(self) -> None:
        if self.communicator.world_size > 1:
            self.order = with_votes(self.order)
        self.num_steps = max((unit.step for unit in self.order), default=-1) + 1
        self._place = {unit: place for place, unit in enumerate(self.order)}
        self._owners = {(unit.step, unit.unit): unit.owner for unit in self.order}
        self._votes = sum(unit.unit == VOTE for unit in self.order)
        self._list_own()
        last: dict[int, StepUnit] = {}
        for unit in self.order:
            if unit.owner in last:
                self._before[unit] = last[unit.owner]
            last[unit.owner] = unit
            if unit.unit != VOTE:
                self._units.setdefault(unit.step, []).append(unit)

    @property
    def is_alone(self) -> bool:
        """Whether this is the only rank."""
        return self.communicator.world_size == 1

    def next(self, step: int) -> StepUnit | None:
        """Return the unit that this rank computes next, perhaps of a later step; None if none up to a step is left."""
        return next(iter(self._upcoming(step)), None)

    def ready(self, first: StepUnit, most: int = 1) -> list[StepUnit]:
        """Wait for what this rank's next unit needs, and return it with those that follow and need not wait.

        Args:
            first: The unit that ``next`` returned; steps up to ``AHEAD`` before are dropped.
            most: Largest number of units, all of one step.

        Returns:
            Units to compute and to send, in order; () if the run stops before them.
        """
        self.wait(self.needed(first))
        self._heed(first.step - HEEDED)
        if first.step >= self.num_steps:
            return []
        found = [first]
        for unit in self._upcoming(first.step)[1:most]:
            if unit.step != first.step or not all(map(self.has, self.needed(unit))):
                break
            found.append(unit)
        return found

    def _upcoming(self, step: int) -> list[StepUnit]:
        """Return this rank's units that it has not sent, in order, up to its last one of a step."""
        return self._own[self._sent : self._last_of[min(step, len(self._last_of) - 1)] + 1]

    def units(self, step: int) -> list[StepUnit]:
        """Return all units of a step."""
        return self._units.get(step, [])

    def needed(self, unit: StepUnit) -> list[StepUnit]:
        """Return what must be here before a unit is computed, once all steps up to ``AHEAD`` before are dropped."""
        return [*self._needs_of(unit), *self._vote_on(unit)]

    # ------------------------------------------------------------------ messages

    def send(self, unit: StepUnit, tensor: Tensor) -> None:
        """Send a unit that this rank computed; its own units in order.

        Args:
            unit: The unit.
            tensor: Its result, of the shape that ``like`` gives on the other ranks.

        Raises:
            ProtocolError: If steps are missing that ``ready`` and ``drop`` would have waited for.
        """
        self._computed[unit] = tensor
        self._sent += 1
        self.post()
        while unit in self._computed:  # a unit before it waits for a vote
            blocking = self.order[self._posted]
            if blocking.step > self._dropped + AHEAD or not self._vote_on(blocking):
                raise ProtocolError(f"unit {unit.unit} of step {unit.step} is sent before what it needs is dropped")
            self.wait(self._vote_on(blocking))

    def has(self, unit: StepUnit) -> bool:
        """Whether a unit's result is here; never blocks."""
        if self._is_known(unit):
            return True
        work = self._works[unit][0] if unit in self._works else None
        return work is not None and work.is_completed()

    def take(self, unit: StepUnit) -> Tensor:
        """Return the result of a unit that is here.

        Raises:
            CommError: If it did not come well.
        """
        work, tensor = self._works[unit]
        if work is not None:
            work.wait()
        return tensor

    def wait(self, units: Sequence[StepUnit]) -> None:
        """Wait until some units are here, those that are done before a stop.

        Raises:
            CommTimeout: Naming the rank that waits for no other, if its message does not come in time.
            CommAborted: If the run was revoked.
        """
        while True:
            self.post()
            late = [unit for unit in units if unit.step < self.num_steps and not self.has(unit)]
            if not late:
                return
            self._wait_for_root(self.root(late), late)

    def root(self, late: Iterable[StepUnit]) -> StepUnit | None:
        """Return the first unit in the order that is not here and that some of these wait for, or are; None if none."""
        found, todo = set[StepUnit](), list(late)
        while todo:
            unit = todo.pop()
            if unit in found or self.has(unit):
                continue
            found.add(unit)
            todo += [self._before[unit]] if unit in self._before else []
            if unit.unit != VOTE:
                todo += [*self._needs_of(unit), *self.units(unit.step - AHEAD), *self._vote_on(unit)]
        return min(found, key=self._place.__getitem__, default=None)

    def drop(self, step: int) -> None:
        """Drop the results of all steps up to one, which are here; so ``AHEAD + 1`` steps are kept, and no more."""
        for unit in [unit for unit in self._works if unit.step <= step]:
            if unit.unit != VOTE or unit.step < self._heeded:
                self.take(unit)
                del self._works[unit]
        self._dropped = max(self._dropped, step + 1)

    # ------------------------------------------------------------------ the end

    def stops_before(self, step: int) -> bool:
        """Whether to stop before a step; equal on all ranks. Called before any unit of the step is computed."""
        if self.is_alone and self.wants_stop():
            self._cut(step)
        if HEEDED <= step < self.num_steps and not self.is_alone:
            self.wait([StepUnit(step - HEEDED, VOTE, 0)])
            self._heed(step - HEEDED)
        return step >= self.num_steps

    def finish(self) -> None:
        """Wait for all units that are left, after this rank's are computed."""
        self.wait(self.order)
        for vote in [unit for unit in self._works if unit.unit == VOTE]:  # after a stop they are not heeded
            self.take(vote)
            del self._works[vote]
        self._heeded = self.num_steps

    # ------------------------------------------------------------------ posting

    def post(self) -> None:
        """Post in order, as far as this rank's next unit, the steps that are kept, and what is known to be computed."""
        while self._posted < len(self.order) and not self.is_alone:
            unit = self.order[self._posted]
            if unit.step > self._dropped + AHEAD or not self._heed(unit.step - HEEDED):
                return
            if unit.step >= self.num_steps:  # it has just been cut
                continue
            if unit.owner == self.communicator.rank and unit.unit != VOTE and unit not in self._computed:
                return
            self._works[unit] = self._relayed(unit)
            self._posted += 1
        for unit in list(self._computed) if self.is_alone else ():
            self._works[unit] = None, self._computed.pop(unit)

    def _relayed(self, unit: StepUnit) -> tuple[Work | None, Tensor]:
        import torch

        communicator = self.communicator
        if unit.unit == VOTE:
            wants = unit.owner == communicator.rank and self.wants_stop()
            tensor = torch.tensor([wants], dtype=torch.uint8, device=communicator.device)
            return communicator.relay(tensor, unit.owner, f"wish before step {unit.step}"), tensor
        tensor = self._computed.pop(unit) if unit.owner == communicator.rank else self.like(unit)
        return communicator.relay(tensor, unit.owner, f"unit {unit.unit} of step {unit.step}"), tensor

    def _heed(self, step: int) -> bool:
        """Whether the votes up to that of a step are known; cut the order at the first that wants to stop."""
        while self._heeded <= min(step, self.num_steps - HEEDED - 1, self._votes - 1):
            vote = StepUnit(self._heeded, VOTE, 0)
            if not self.has(vote):
                return False
            if bool(self.take(vote)):
                self._cut(vote.step + HEEDED)
            del self._works[vote]
            self._heeded += 1
        return True

    def _cut(self, step: int) -> None:
        """Leave out all units from a step on; none of them is posted."""
        self.num_steps = min(self.num_steps, step)
        self.order = tuple(unit for unit in self.order if unit.step < self.num_steps)
        self._place = {unit: place for place, unit in enumerate(self.order)}
        self._list_own()

    def _list_own(self) -> None:
        """List this rank's units, and where among them the last one up to each step stands."""
        self._own = [unit for unit in self.order if unit.owner == self.communicator.rank and unit.unit != VOTE]
        self._last_of = [-1] * max(1, self.num_steps)
        for place, unit in enumerate(self._own):
            for step in range(unit.step, self.num_steps):
                self._last_of[step] = place

    def _wait_for_root(self, root: StepUnit | None, late: Sequence[StepUnit]) -> None:
        if root is not None and root not in self._works:  # it stands behind a step before which the run may stop
            root = self.root(self._vote_on(self.order[self._posted]))
        if root is None:  # it has come meanwhile
            return
        work, _ = self._works[root]
        posted = [self._works[unit][0] for unit in late if unit in self._works]
        others = [other for other in posted if other is not None]
        assert work is not None
        work.wait_or(others if len(others) == len(late) else ())

    def _needs_of(self, unit: StepUnit) -> list[StepUnit]:
        if unit.unit == VOTE or unit.step == 0:
            return []
        before = unit.step - 1
        return [StepUnit(before, need, self._owners[before, need]) for need in self.needs[unit.step][unit.unit]]

    def _vote_on(self, unit: StepUnit) -> list[StepUnit]:
        """Return the wish that must be known before a unit is posted, if there is one and this is not the only rank."""
        if self.is_alone or not HEEDED <= unit.step < self._votes + HEEDED:
            return []
        return [StepUnit(unit.step - HEEDED, VOTE, 0)]

    def _is_known(self, unit: StepUnit) -> bool:
        """Whether a unit needs no message: this rank has it, or it is dropped."""
        if unit.unit == VOTE and unit.step < self._heeded:
            return True
        if unit.step < self._dropped and unit.unit != VOTE:
            return True
        if unit.owner != self.communicator.rank:
            return False
        return unit in self._works or unit in self._computed
