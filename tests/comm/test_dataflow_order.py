"""Level 0: the order of a dataflow is a pure function that gives every unit to one rank, behind all that it needs."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from dataflows import flows, grid, is_extension
from vitrail.comm.dataflow import AHEAD, dataflow_order
from vitrail.comm.dataflow_exchange import HEEDED, VOTE, with_votes
from vitrail.errors import ConfigError


def makespan(flow, order):
    """When the last unit is done if each rank computes its own in order, and waits for nothing but needs."""
    done, free = {}, [0.0] * len(flow.speeds)
    for unit in order:
        needs = [(unit.step - 1, need) for need in flow.needs[unit.step][unit.unit]] if unit.step else []
        needs += [(step, each) for step, each in done if step <= unit.step - AHEAD]
        begin = max([free[unit.owner], *(done[need] for need in needs)])
        free[unit.owner] = begin + flow.costs[unit.step][unit.unit] / flow.speeds[unit.owner]
        done[unit.step, unit.unit] = free[unit.owner]
    return max(free)


def longest_chain(flow):
    """Seconds of the longest chain of units that need each other, on a rank of speed 1."""
    ends, whole = {}, []
    for step, costs in enumerate(flow.costs):
        late = whole[step - AHEAD] if step >= AHEAD else 0.0
        for unit, cost in enumerate(costs):
            ends[step, unit] = cost + max([late, *(ends[step - 1, n] for n in flow.needs[step][unit] if step)])
        whole.append(max([late, *(ends[step, unit] for unit in range(len(costs)))]))
    return whole[-1]


@given(flow=flows())
def test_every_unit_stands_once_behind_all_that_it_needs(flow):
    assert is_extension(flow, flow.order)
    assert all(0 <= unit.owner < len(flow.speeds) for unit in flow.order)
    assert flow.order == evolve(flow, speeds=tuple(2 * speed for speed in flow.speeds)).order


@given(flow=flows(), world=st.integers(1, 6))
def test_on_equal_ranks_no_order_is_longer_than_work_shared_and_the_longest_chain(flow, world):
    """Graham's bound, which holds if no rank is idle while there is a unit that it could take."""
    equal = evolve(flow, speeds=(1.0,) * world)
    work = sum(map(sum, flow.costs))
    assert makespan(equal, equal.order) <= work / world + longest_chain(flow) * (world - 1) / world + 1e-9


@given(flow=flows(ranks=st.just(1)))
def test_one_rank_does_step_after_step(flow):
    assert [unit.step for unit in flow.order] == sorted(unit.step for unit in flow.order)


@given(flow=flows())
def test_the_wish_to_stop_stands_before_every_unit_that_could_go_by_it(flow):
    order = with_votes(flow.order)
    assert [unit for unit in order if unit.unit != VOTE] == list(flow.order)
    votes = {unit.step: place for place, unit in enumerate(order) if unit.unit == VOTE}
    assert sorted(votes) == list(range(max(0, flow.num_steps - HEEDED)))
    for place, unit in enumerate(order):
        if unit.unit != VOTE:
            assert all(votes[step] < place for step in votes if step <= unit.step)


@pytest.mark.parametrize(
    ("side", "speeds", "share"),
    [
        (3, [1.0] * 4, 0.98),  # 2048x2048
        (5, [1.0] * 8, 0.98),
        (7, [1.0] * 8, 0.99),  # 4096x4096
        (7, [1.0] * 7 + [0.5], 0.99),
        (3, [1.0, 0.5], 0.99),
        (3, [1.0, 1.0, 1.0, 0.1], 0.95),
    ],
)
def test_windows_of_half_overlap_keep_ranks_busy(side, speeds, share):
    flow = grid(side, side, 25, speeds)
    ideal = side * side * 25 / sum(speeds)
    assert ideal / makespan(flow, flow.order) >= share


def test_with_a_barrier_the_same_windows_do_not():
    flow = grid(3, 3, 25, [1.0] * 4)
    every = tuple(tuple(range(9)) for _ in range(9))
    barrier = evolve(flow, needs=(every,) * 25)
    assert makespan(barrier, barrier.order) == 25 * 3


@pytest.mark.parametrize("speeds", [[], [1.0, 0.0], [float("nan")]])
def test_speeds_that_are_none_are_refused(speeds):
    with pytest.raises(ConfigError, match="must be positive numbers"):
        dataflow_order([[1.0]], [[()]], speeds)
